"""How the client of Milvus is made from the settings: embedded Milvus Lite or a server."""

from __future__ import annotations

import atexit
import threading
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from encoder.errors import Misconfigured, Unavailable
from encoder.settings import MilvusSettings
from encoder.tls import TlsFiles, refusal

# A server of gRPC's own making, as Milvus Lite's is, ends connections that are pinged more often
# than every 5 minutes, which is what pymilvus does by itself.
_GRPC_OPTIONS: Final = {"grpc.keepalive_time_ms": 330_000}

_REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_DEFAULT_PORT: Final = 19530

_lock = threading.Lock()
_embedded: dict[Path, tuple[Any, Any, str]] = {}  # folder → server, database, address


def milvus_client(settings: MilvusSettings) -> MilvusClient:
    """Connect to the server, or open the folder of Milvus Lite within this process.

    Raises:
        Misconfigured: the folder is open in another process, or cannot be written; a file for TLS
            cannot be used; server and client do not accept each other.
        Unavailable: the server does not answer.
    """
    uri = settings.uri if "://" in settings.uri else _open_embedded(Path(settings.uri))
    token = settings.token.get_secret_value() if settings.token else ""
    if _over_tls(settings):
        _tls_files(settings).context()  # tells of a wrong file before anything connects
    try:
        return MilvusClient(
            uri,
            token=token,
            timeout=settings.timeout_s,
            dedicated=True,  # a shared connection keeps the options of whoever opened it first
            grpc_options=_GRPC_OPTIONS,
            **_tls_options(settings),
        )
    except (MilvusException, grpc.RpcError) as exc:
        # pymilvus says no more than that it failed; why is in the error that it caught.
        told = exc if isinstance(exc, grpc.RpcError) else exc.__cause__
        if isinstance(told, grpc.RpcError) and told.code() in _REFUSED:
            raise Misconfigured(
                f"Milvus at {settings.uri} refused: {told.details()};"
                " check MINDSTREAM_MILVUS__TOKEN (user:password, or an API key)"
            ) from exc
        if why := _refusal(settings):
            raise Misconfigured(f"Milvus: {why}") from exc
        raise Unavailable(
            f"Milvus at {settings.uri} does not answer: {exc};"
            " are MINDSTREAM_MILVUS__URI and …TOKEN right, and is the server up?"
        ) from exc


def _over_tls(settings: MilvusSettings) -> bool:
    return settings.uri.startswith("https://")


def _tls_files(settings: MilvusSettings) -> TlsFiles:
    return TlsFiles(
        "MINDSTREAM_MILVUS__TLS_",
        settings.tls_cafile,
        settings.tls_certfile,
        settings.tls_keyfile,
    )


def _tls_options(settings: MilvusSettings) -> dict[str, Any]:
    """What pymilvus calls these settings: it has other names where the client has a certificate."""
    if not _over_tls(settings):
        return {}
    options: dict[str, Any] = {"secure": True, "server_name": settings.tls_server_name or ""}
    if settings.tls_certfile is not None:
        options["client_pem_path"] = settings.tls_certfile
        options["client_key_path"] = settings.tls_keyfile
        options["ca_pem_path"] = settings.tls_cafile
    elif settings.tls_cafile is not None:
        options["server_pem_path"] = settings.tls_cafile
    return options


def _refusal(settings: MilvusSettings) -> str | None:
    """Why there can be no connection, which gRPC does not tell; None where it might pass."""
    if not _over_tls(settings):
        return None
    parts = urlsplit(settings.uri)
    host = parts.hostname or ""
    return refusal(
        _tls_files(settings),
        host,
        parts.port or _DEFAULT_PORT,
        settings.tls_server_name or host,
        settings.timeout_s,
    )


def close_embedded(uri: str) -> None:
    """Close a Milvus Lite folder that this process opened, so that another process may open it."""
    with _lock:
        opened = _embedded.pop(Path(uri).resolve(), None)
    if opened:
        server, database, _ = opened
        server.stop(grace=2).wait()
        database.close()


def _open_embedded(folder: Path) -> str:
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.exceptions import DataDirLockedError

    from encoder.milvus_lite import use_safe_collections

    use_safe_collections()
    folder = folder.resolve()
    with _lock:
        if folder in _embedded:
            return _embedded[folder][2]
        try:
            server, database, port = start_server_in_thread(str(folder))
        except DataDirLockedError as exc:
            raise Misconfigured(
                f"{folder} is open in another process, and Milvus Lite serves one process only."
                " Stop the other one, or let one server hold the folder for all:"
                f" `python -m encoder.milvus_lite server --data-dir {folder} --host 127.0.0.1"
                " --port 19530` and"
                " MINDSTREAM_MILVUS__URI=http://127.0.0.1:19530"
            ) from exc
        except OSError as exc:
            raise Misconfigured(f"MINDSTREAM_MILVUS__URI: cannot use {folder}: {exc}") from exc
        address = f"http://127.0.0.1:{port}"
        _embedded[folder] = (server, database, address)
        if len(_embedded) == 1:
            atexit.register(_close_all)
        return address


def _close_all() -> None:
    for folder in list(_embedded):
        close_embedded(str(folder))
