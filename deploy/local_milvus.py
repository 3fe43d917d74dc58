"""Milvus for development and tests: the embedded engine behind a port, and the real server."""

import importlib.metadata
import importlib.util
import json
import lzma
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from pymilvus import MilvusClient, MilvusException

from deploy.cache import build_once, cache_root
from deploy.guarded_process import ServiceError
from deploy.local_service import Launch, LocalService
from deploy.loopback import HOST

TICK_MS: Final = 20


@dataclass(frozen=True)
class MilvusSecurity:
    """TLS for a Milvus server, and users.

    Attributes:
        certificate: PEM file of the server's certificate, which is for 127.0.0.1.
        key: PEM file of its private key.
        ca: PEM file of the authority that signed it.
        client: PEM files of a client's certificate and key, signed by `ca`; if given, every client
            must have one.
    """

    certificate: Path
    key: Path
    ca: Path
    client: tuple[Path, Path] | None = None

    ROOT: ClassVar[str] = "root:Milvus"
    """The token of the user that a new server has."""

    def configuration(self) -> dict[str, object]:
        """Values for Milvus's template."""
        return {
            "authorization_enabled": "true",
            "tls_mode": 2 if self.client else 1,
            "server_pem_path": self.certificate,
            "server_key_path": self.key,
            "ca_pem_path": self.ca,
        }

    def client_options(self) -> dict[str, Any]:
        """For ``MilvusClient``, besides the address."""
        if self.client is None:
            return {"token": self.ROOT, "server_pem_path": str(self.ca)}
        certificate, key = map(str, self.client)
        files = {
            "client_pem_path": certificate,
            "client_key_path": key,
            "ca_pem_path": str(self.ca),
        }
        return {"token": self.ROOT, **files}


class _LocalMilvus(LocalService):
    _scheme = "http"

    @property
    def uri(self) -> str:
        """For ``MilvusClient``; known from the first start on."""
        return f"{self._scheme}://{HOST}:{self.port}"

    def _client_options(self) -> dict[str, Any]:
        return {}

    def _serves(self, port: int) -> bool:
        try:
            # A connection of its own: pymilvus would keep a shared one, and its many pings, which
            # Milvus Lite's server answers by ending the connection.
            client = MilvusClient(
                uri=f"{self._scheme}://{HOST}:{port}",
                timeout=5,
                dedicated=True,
                **self._client_options(),
            )
        except MilvusException:
            return False
        try:
            client.list_collections()
        except MilvusException:
            return False
        finally:
            client.close()
        return True


class LocalMilvusLite(_LocalMilvus):
    """Milvus Lite's own server, so that several processes can share one Lite folder.

    The folder is the one that ``MilvusClient("….db")`` would open, and can be opened so afterwards.
    """

    name: ClassVar[str] = "Milvus Lite"
    ports_needed = 1

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int | None = None,
        notify: Callable[[str], None] = lambda message: None,
        as_packaged: bool = False,
    ) -> None:
        """Describe the server; nothing runs before `start`.

        Args:
            data: see `LocalService`.
            port: see `LocalService`.
            notify: see `LocalService`.
            as_packaged: run it as the package does, not as `encoder.milvus_lite` has it.
        """
        super().__init__(data, port=port, notify=notify)
        self._module = "milvus_lite" if as_packaged else "encoder.milvus_lite"

    def _install(self) -> None:
        if importlib.util.find_spec("milvus_lite") is None:
            raise ServiceError("Milvus Lite is not installed")

    def _configure(self, ports: Sequence[int]) -> Launch:
        server = [sys.executable, "-u", "-m", self._module, "server"]
        where = ["--data-dir", str(self.data), "--host", HOST, "--port", str(ports[0])]
        # An interrupt is the one request to end that it takes.
        return Launch([*server, *where], stop_signal=signal.SIGINT)

    def _explain(self, output: str) -> str | None:
        if "DataDirLockedError" not in output:
            return None
        return (
            f"{self.data} is open in another process; Milvus Lite takes one. Close it there, or "
            "share it: run this server first and give its address to every process."
        )


class LocalMilvusServer(_LocalMilvus):
    """The real Milvus server, standalone: etcd and the message queue are built in.

    It comes from the package ``milvus``, which has it for x86-64 Linux. It knows no setting for the
    address to bind to: all of its ports but etcd's listen on every interface.
    """

    name: ClassVar[str] = "Milvus server"
    ports_needed = 12

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int | None = None,
        notify: Callable[[str], None] = lambda message: None,
        security: MilvusSecurity | None = None,
        tick_ms: int = TICK_MS,
    ) -> None:
        """Describe the server; nothing runs before `start`.

        Args:
            data: see `LocalService`.
            port: see `LocalService`.
            notify: see `LocalService`.
            security: TLS and users; by default everybody may connect and do everything.
            tick_ms: Milvus's `proxy.timeTickInterval`: rows can be read from the next tick on
                (docs/decisions/0022-ticks.md).
        """
        super().__init__(data, port=port, notify=notify)
        self._security = security
        self._tick_ms = tick_ms
        if security:
            self._scheme = "https"

    def _client_options(self) -> dict[str, Any]:
        return self._security.client_options() if self._security else {}

    def _install(self) -> None:
        package = importlib.util.find_spec("milvus")
        if package is None or package.origin is None:
            raise ServiceError(
                "no Milvus server can be had: it comes from the package `milvus`, a development "
                "dependency (`uv sync`) that exists for x86-64 Linux alone"
            )
        self._packed = Path(package.origin).parent / "data"
        version = importlib.metadata.version("milvus")
        self._program = build_once(cache_root() / f"milvus-{version}", self._unpack)

    def _unpack(self, folder: Path) -> None:
        self._notify("unpacking the Milvus server (250 MB, once)")
        for packed in sorted((self._packed / "bin").glob("*.lzma")):
            unpacked = folder / packed.stem
            with lzma.open(packed) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
            unpacked.chmod(0o755)

    def _configure(self, ports: Sequence[int]) -> Launch:
        named = dict(zip(_PORT_NAMES, ports, strict=True))
        configs = self.data / "configs"
        for folder in (configs, self.data / "run", self.data / "logs"):
            folder.mkdir(exist_ok=True)
        values: dict[str, object] = {
            **named,
            "etcd_data_dir": self.data / "etcd",
            "etcd_log_level": "warn",
            "local_storage_dir": self.data / "storage",
            "rocksmq_data_dir": self.data / "rocksmq",
            "system_log_path": "",  # standard output alone, which is our log
            **(self._security.configuration() if self._security else {}),
        }
        template = (self._packed / "config.yaml.template").read_text()
        (configs / "milvus.yaml").write_text(_fill(template, values))
        (configs / "glog.conf").write_text((self._packed / "glog.conf").read_text())
        client, peer = (f"http://{HOST}:{named[name]}" for name in ("etcd_port", "etcd_peer_port"))
        (configs / "etcd.yaml").write_text(
            json.dumps(  # which is YAML too
                {
                    "name": "default",
                    "listen-client-urls": client,
                    "advertise-client-urls": client,
                    "listen-peer-urls": peer,
                    "initial-advertise-peer-urls": peer,
                    "initial-cluster": f"default={peer}",
                }
            )
        )
        environment = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "LD_LIBRARY_PATH": str(self._program),
            "METRICS_PORT": str(named["metrics_port"]),
            "MILVUSCONF": str(configs),
            "MILVUS_RUN_DIR": str(self.data / "run"),
            "ETCD_CONFIG_PATH": str(configs / "etcd.yaml"),
            "LOG_LEVEL": "warn",
            # What a crash leaves behind is waited for that long at the next start.
            "COMMON_SESSION_TTL": "10",
            # A strong read waits for the next tick; by itself, the server has one every 200 ms.
            "PROXY_TIMETICKINTERVAL": str(self._tick_ms),
            # Components of one process find each other on loopback, whatever the network does.
            **{f"{part}_IP": HOST for part in _PARTS},
        }
        command = [str(self._program / "milvus"), "run", "standalone"]
        # Asked to end, it takes more than 20 s; what is written is safe either way.
        return Launch(command, environment=environment, folder=self.data, stop_budget_s=3)


_PARTS = ["PROXY", "ROOTCOORD", "QUERYCOORD", "QUERYNODE", "DATACOORD", "DATANODE", "INDEXNODE"]

_PORT_NAMES = [
    "proxy_port",  # the one that clients use
    "proxy_internal_port",
    "root_coord_port",
    "query_coord_port",
    "query_node_port",
    "index_coord_port",
    "index_node_port",
    "data_coord_port",
    "data_node_port",
    "etcd_port",
    "etcd_peer_port",
    "metrics_port",
]


def _fill(template: str, values: Mapping[str, object]) -> str:
    """Replace ``{{ name }}``, ``{{ name(type): default }}`` and their like in Milvus's template."""

    def value(match: re.Match[str]) -> str:
        return str(values.get(match["name"], match["default"] or ""))

    return re.sub(
        r"\{\{\s*(?P<name>\w+)(\(\w+\))?\s*(:\s*(?P<default>[^}]*?)\s*)?\}\}", value, template
    )
