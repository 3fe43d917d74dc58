"""The network side of our clients of Kafka: what kafka-python 3.0 does not do by itself.

**Fail at once when no broker will ever take us.** It means to raise failed logins instead of trying
again, but forgets each at once: a wrong password and a wrong certificate alike are tried again
until the time-out, and end as one. Here they are kept, for as long as a client looks for its first
broker. Later ones are left to the library: a broker being restarted may fail in any way.

**Start at once.** A client's first question about a topic fails, for want of the topic's metadata,
and kafka-python waits 100 ms before it fetches that. A worker makes ten clients while it starts.

**Outlast a restart of the broker within a transaction.** A request of a transaction that meets no
connection is lost, and the producer waits for its answer until all time-outs are over: they are put
back only where the client says that a node is not ready, but kafka-python's client raises.

**Leave no socket open.** A client that is closed while it connects to a broker, or has something
left to send, forgets the socket.
"""

from __future__ import annotations

import socket
import ssl
from functools import partial
from typing import Any

from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    KafkaConnectionError,
    NodeNotReadyError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from encoder.tls import is_cut

_METADATA_PAUSE_MS = 10
_SCHEME = "mindstream"  # of what kafka-python takes for a proxy: it chooses how to connect by it

REFUSALS = (
    AuthorizationError,
    IllegalSaslStateError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)


def tls_error(exc: BaseException) -> ssl.SSLError | None:
    """The error of TLS that led to this one, if one did."""
    for cause in (exc, *exc.args, exc.__cause__, exc.__context__):
        if isinstance(cause, ssl.SSLError):
            return cause
    return None


def net_client(**config: Any) -> KafkaNetClient:
    """For the configuration `kafka_client` of kafka-python's clients."""
    net = NetworkSelector(**config)
    manager = _Manager(net, **{**config, "proxy_url": f"{_SCHEME}://"})
    return _Client(net=net, manager=manager, **config)


class ClosedWhenCutShort(KafkaNetSocket):  # type: ignore[misc]  # kafka-python is untyped
    """Connects without a proxy, and leaves no socket behind where that is cut short or fails."""

    SCHEMES = (_SCHEME,)

    async def sock_connect(self, net: Any, sock: socket.socket, *args: Any, **options: Any) -> Any:
        """As the library does."""
        try:
            return await super().sock_connect(net, sock, *args, **options)
        except BaseException:
            sock.close()
            raise


class _Client(KafkaNetClient):  # type: ignore[misc]  # kafka-python is untyped
    def await_ready(self, node_id: str, timeout_ms: float = 30_000) -> bool:
        try:
            return bool(super().await_ready(node_id, timeout_ms=timeout_ms))
        except KafkaConnectionError:
            return False

    def close(self, node_id: str | None = None) -> None:
        connections = list(self._manager._conns.values())
        transports = [one.transport for one in connections if one.transport]
        super().close(node_id=node_id)
        if node_id is None:
            for one in transports:
                if one._sock is not None:
                    one._sock.close()

    def send(self, node_id: str, request: Any, **options: Any) -> Any:
        sent = super().send(node_id, request, **options)
        if sent.failed() and isinstance(sent.exception, NodeNotReadyError):
            # Of a transaction's requests only those that met no connection are sent again.
            return Future().failure(KafkaConnectionError(str(sent.exception)))
        return sent


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python is untyped
    def __init__(self, net: NetworkSelector, **config: Any) -> None:
        super().__init__(net, **config)
        self.cluster.config["retry_backoff_ms"] = _METADATA_PAUSE_MS
        self._refusals: dict[str, Exception] = {}  # by node id

    def get_connection(self, node_id: str, **options: Any) -> Any:
        connection = super().get_connection(node_id, **options)
        connection.init_future.add_callback(lambda _: self._refusals.pop(node_id, None))
        connection.init_future.add_errback(partial(self._note, node_id))
        return connection

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        try:
            transport = await super()._build_transport(node, timeout_at=timeout_at)
        except KafkaConnectionError as exc:
            # It and the frames that it came through hold each other, and one holds the socket.
            exc.with_traceback(None)
            raise
        receive = transport._sock_recv

        def received_first() -> tuple[bytes, Exception | None]:
            # What arrives together with the end of the connection counts: kafka-python drops it,
            # and it is the broker's word on why it refuses a login.
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = received_first
        return transport

    def maybe_raise_auth_failure(self, node_id: str) -> None:
        super().maybe_raise_auth_failure(node_id)
        # One broker out of order is no reason to fail while another may do.
        servers = {broker.node_id for broker in self.cluster.bootstrap_brokers()}
        if not self.bootstrapped and node_id in servers <= self._refusals.keys():
            raise self._refusals[node_id]

    def _note(self, node_id: str, exc: Exception) -> None:
        error = tls_error(exc)
        if isinstance(exc, REFUSALS) or (error is not None and not is_cut(error)):
            self._refusals[node_id] = exc
