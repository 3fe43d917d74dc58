"""Interests, candidates and audiences over HTTP, for services that do not run Python.

| request | answer |
|---|---|
| `GET /users/{user}/interests` | `{"user", "release", "interests": [{"slot", "weight", …}]}` |
| `GET /users/{user}/candidates?limit=50` | `{"user", "release", "items": [{"id", "score"}]}` |
| `GET /items/{item}/audience?limit=50` | `{"item", "release", "users": [{"id", "score"}]}` |

Interests come with their vectors when `vectors=true` is asked for. Candidates are by the release's
mix when `mixed=true` is asked for and it has one; `"mixed": true` in the answer says so. Every
request may name Milvus's `consistency` for it. Ids are percent-encoded, slashes too. Errors are
JSON with an `error`: 400 names the parameter at fault, 404 an item that the release does not have,
503 the store that does not answer.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final, get_args

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import Hit, Interest
from encoder.milvus_store import Consistency
from lookup.client import Lookup, UnknownItem

_BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_RETRY_AFTER_S: Final = "1"
_KEEP_ALIVE_S: Final = 75  # longer than load balancers keep idle connections, commonly a minute

log = structlog.get_logger()


class _Query(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    vectors: bool = False
    mixed: bool = False
    consistency: Consistency | None = None


def application(lookup: Lookup) -> Starlette:
    """The service. It answers from a thread per open request, up to Starlette's limit."""
    registry = CollectorRegistry()
    seconds = Histogram(
        "mindstream_lookup_seconds",
        "Time of a request, by what was asked for and the status of the answer.",
        ["request", "status"],
        registry=registry,
        buckets=_BOUNDS_S,
    )
    in_memory = Gauge(
        "mindstream_lookup_items_in_memory",
        "Whether the items of the release in use are searched in this process (1) or by the store.",
        registry=registry,
    )

    def timed(name: str, answer: Callable[[Request, _Query], dict[str, Any]]) -> Any:
        def endpoint(request: Request) -> Response:
            began = time.perf_counter()
            response = _answered(request, answer)
            taken = time.perf_counter() - began
            seconds.labels(name, str(response.status_code)).observe(taken)
            return response

        return endpoint

    def interests(request: Request, query: _Query) -> dict[str, Any]:
        user = request.path_params["user"]
        found = lookup.interests(user, consistency=query.consistency)
        shown = [_shown(interest, query.vectors) for interest in found.interests]
        return {"user": user, "release": found.release, "interests": shown}

    def candidates(request: Request, query: _Query) -> dict[str, Any]:
        user = request.path_params["user"]
        found = lookup.candidates(
            user, limit=query.limit, mixed=query.mixed, consistency=query.consistency
        )
        answer = {"user": user, "release": found.release, "items": _hits(found.items)}
        return answer | {"mixed": True} if found.mixed else answer

    def audience(request: Request, query: _Query) -> dict[str, Any]:
        item = request.path_params["item"]
        found = lookup.audience(item, limit=query.limit, consistency=query.consistency)
        return {"item": item, "release": found.release, "users": _hits(found.users)}

    def ready(request: Request) -> Response:
        try:
            return PlainTextResponse(lookup.release().name)
        except (Misconfigured, Unavailable) as exc:
            return PlainTextResponse(str(exc), status_code=503)

    def metrics(request: Request) -> Response:
        with suppress(Misconfigured, Unavailable):
            in_memory.set(lookup.items_are_in_memory)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/users/{user:path}/interests", timed("interests", interests)),
            Route("/users/{user:path}/candidates", timed("candidates", candidates)),
            Route("/items/{item:path}/audience", timed("audience", audience)),
            Route("/livez", lambda request: PlainTextResponse("alive")),
            Route("/readyz", ready),
            Route("/metrics", metrics),
        ]
    )


def serve(lookup: Lookup, stop: threading.Event, *, host: str, port: int) -> None:
    """Serve until `stop` is set; requests that are open then are answered.

    Raises:
        Misconfigured: the address cannot be listened on.
    """
    listening = _listening(host, port)
    config = uvicorn.Config(
        application(lookup), log_config=None, access_log=False, timeout_keep_alive=_KEEP_ALIVE_S
    )
    server = uvicorn.Server(config)
    # On a thread of its own, since it would take our signals over.
    thread = threading.Thread(target=server.run, args=([listening],), name="http")
    thread.start()
    log.info("lookup.serving", host=host, port=listening.getsockname()[1])
    stop.wait()
    server.should_exit = True
    thread.join()


def _listening(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port))
    except OSError as exc:
        raise Misconfigured(
            f"cannot listen on {host}:{port}: {exc};"
            " check MINDSTREAM_LOOKUP__HTTP_HOST and MINDSTREAM_LOOKUP__HTTP_PORT"
        ) from exc
    # Connections inherit it. asyncio sees to it only where a socket was made with its protocol's
    # number; without it, an answer's body waits 40 ms for its headers to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _answered(request: Request, answer: Callable[[Request, _Query], dict[str, Any]]) -> Response:
    try:
        query = _Query.model_validate(dict(request.query_params))
        return JSONResponse(answer(request, query))
    except ValidationError as exc:
        return _refused(400, "; ".join(_problem(problem) for problem in exc.errors()))
    except UnknownItem as exc:
        return _refused(404, str(exc))
    except (Unavailable, Misconfigured) as exc:
        log.warning("lookup.unavailable", error=str(exc))
        response = _refused(503, str(exc))
        response.headers["Retry-After"] = _RETRY_AFTER_S
        return response


def _refused(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status)


def _problem(problem: Any) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"no such parameter: {name}; there are {', '.join(_Query.model_fields)}"
    if name == "consistency":
        levels = ", ".join(get_args(Consistency))
        return f"consistency must be one of {levels}, got {problem['input']!r}"
    return f"{name}: {problem['msg']}, got {problem['input']!r}"


def _shown(interest: Interest, with_vector: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "slot": interest.slot,
        "weight": interest.weight,
        "exemplar": interest.exemplar,
        "updated_at": interest.updated_at,
    }
    if with_vector:
        shown["vector"] = interest.vector.tolist()
    return shown


def _hits(hits: tuple[Hit, ...]) -> list[dict[str, Any]]:
    return [{"id": hit.id, "score": hit.score} for hit in hits]
