# The trainer, with torch.
#   docker build -f deploy/training.Dockerfile -t mindstream-training .

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
RUN uv sync --locked --no-dev --extra training --extra s3 --no-install-project
COPY . .
RUN uv sync --locked --no-dev --extra training --extra s3 --no-editable

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home mindstream \
    && install --directory --owner=mindstream /releases /var/cache/mindstream
COPY --from=build /opt/mindstream /opt/mindstream
ENV PATH=/opt/mindstream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MINDSTREAM_RELEASES__URL=/releases \
    MINDSTREAM_RELEASES__CACHE=/var/cache/mindstream
USER 10001
WORKDIR /home/mindstream
ENTRYPOINT ["mindstream"]
CMD ["train"]
