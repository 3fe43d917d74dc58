"""Stores that can be made to fail."""

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer
from deploy.local_service import Launch

_ROOM_MB = 64


class RefusingServer(LocalMilvusServer):
    """A real Milvus server that can be told to refuse writes, from its next start on."""

    refuse = False

    def _configure(self, ports: Sequence[int]) -> Launch:
        launch = super()._configure(ports)
        if not self.refuse:
            return launch
        quota = {"QUOTAANDLIMITS_ENABLED": "true", "QUOTAANDLIMITS_LIMITWRITING_FORCEDENY": "true"}
        return replace(launch, environment={**(launch.environment or {}), **quota})


class SharedServers:
    """Servers that several faults use, started when first asked for; they end with the context."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._stack = ExitStack()
        self._milvus: RefusingServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def milvus_server(self) -> RefusingServer:
        """A real Milvus server."""
        if self._milvus is None:
            self._milvus = self._stack.enter_context(RefusingServer())
        return self._milvus


class CrampedLite(LocalMilvusLite):
    """Milvus Lite with a file system of its own, of a few megabytes."""

    def _configure(self, ports: Sequence[int]) -> Launch:
        launch = super()._configure(ports)
        script = f'mount -t tmpfs -o size={_ROOM_MB}m none "$0" && exec "$@"'
        inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(self.data)]
        return replace(launch, command=[*inside, *launch.command])

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise

    def clear(self) -> None:
        """Make room again."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.data}/ballast")
