# The serving side: worker, monitor and look-ups, without torch.
#   docker build -f deploy/serving.Dockerfile -t mindstream-serving .

FROM python:3.12-slim AS build
RUN pip install --no-cache-dir uv==0.13.9
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/opt/mindstream \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
# The dependencies change seldom: they are a layer of their own.
COPY pyproject.toml uv.lock README.md ./
RUN uv sync --locked --no-dev --extra s3 --no-install-project
COPY . .
RUN uv sync --locked --no-dev --extra s3 --no-editable

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home mindstream \
    && install --directory --owner=mindstream /releases /var/cache/mindstream
COPY --from=build /opt/mindstream /opt/mindstream
ENV PATH=/opt/mindstream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MINDSTREAM_RELEASES__URL=/releases \
    MINDSTREAM_RELEASES__CACHE=/var/cache/mindstream \
    MINDSTREAM_MONITOR__HTTP_HOST=0.0.0.0 \
    MINDSTREAM_WORKER__HTTP_HOST=0.0.0.0
USER 10001
WORKDIR /home/mindstream
EXPOSE 9108 9109
ENTRYPOINT ["mindstream"]
CMD ["worker"]
