"""The HTTP side of worker and monitor: `/livez`, `/readyz` and `/metrics`, on loopback at first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from encoder.errors import Misconfigured


class Health:
    """What the probes are told. Set by the loop, read by the server's threads."""

    def __init__(self, stalled_after_s: float) -> None:
        self._stalled_after_s = stalled_after_s
        self._progress = time.monotonic()
        self._waiting_for = "starting"

    def progress(self) -> None:
        """The loop has come round."""
        self._progress = time.monotonic()

    def waiting_for(self, what: str) -> None:
        """Not ready, and why; the empty string when ready."""
        self._waiting_for = what
        self.progress()

    def live(self) -> tuple[bool, str]:
        """Whether the loop still comes round; if not, only a restart can help."""
        idle_s = time.monotonic() - self._progress
        return idle_s < self._stalled_after_s, f"last progress {idle_s:.1f} s ago"

    def ready(self) -> tuple[bool, str]:
        """Whether the worker serves its partitions."""
        waiting_for = self._waiting_for
        return not waiting_for, waiting_for or "ready"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base's name
        pass


class HealthServer:
    """Serves the probes and metrics from threads of its own until closed."""

    def __init__(
        self,
        host: str,
        port: int,
        health: Health,
        registry: CollectorRegistry,
        *,
        section: str = "WORKER",
    ) -> None:
        """Listen.

        Args:
            host: to listen on.
            port: likewise; 0 for a free one.
            health: what the probes tell.
            registry: what `/metrics` tells.
            section: of the settings, that `host` and `port` are from.

        Raises:
            Misconfigured: the address cannot be listened on.
        """
        metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        probes = {"/livez": health.live, "/readyz": health.ready}

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                return metrics(environ, start_response)
            if path in probes:
                good, text = probes[path]()
                status = "200 OK" if good else "503 Service Unavailable"
            else:
                status, text = "404 Not Found", "try /livez, /readyz or /metrics"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{text}\n".encode()]

        try:
            self._server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
        except OSError as exc:
            raise Misconfigured(
                f"cannot listen on {host}:{port}: {exc};"
                f" set MINDSTREAM_{section}__HTTP_HOST and MINDSTREAM_{section}__HTTP_PORT"
                " (0: a free one)"
            ) from exc
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
