"""What the local services have in common: a folder, ports on loopback, a guarded process."""

import shutil
import signal
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from deploy.guarded_process import FolderClaim, GuardedProcess, ServiceError, tail
from deploy.loopback import answers, free_ports, is_free

_START_BUDGET_S = 120.0
_PREDECESSOR_BUDGET_S = 30.0  # more than any stop budget
_PORT_TRIES = 5
_LOG_KEEP_BYTES = 8_000_000


@dataclass(frozen=True)
class Launch:
    """How to run a service that has been configured; see `GuardedProcess`."""

    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_budget_s: float = 20.0
    afterwards: Sequence[str] = ()


class LocalService(ABC):
    """A server on 127.0.0.1 for development and tests, which ends with its owner.

    It may be started again after `stop` and `kill`: on the same ports, with the same data.
    """

    name: ClassVar[str]
    ports_needed: int

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Describe the service; nothing runs before `start`.

        Args:
            data: where its data is kept, from one service to the next; by default a temporary
                folder, which goes away with this object. ``server.log`` in it is the log.
            port: to listen on; by default a free one.
            notify: is told what is being waited for.
        """
        self._notify = notify
        self._fixed_port = port
        self._ports: list[int] = []
        self._process: GuardedProcess | None = None
        self._data = data.resolve() if data else None
        self._discard: Callable[[], object] | None = None

    @property
    def data(self) -> Path:
        """The data folder; a temporary one is there from the first start on."""
        if self._data is None:
            raise ServiceError(f"{self.name} has not been started yet")
        return self._data

    @property
    def port(self) -> int:
        """The port that clients connect to; known from the first start on."""
        if not self._ports:
            raise ServiceError(f"{self.name} has not been started yet")
        return self._ports[0]

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._own().pid

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.data / "server.log"

    def start(self) -> None:
        """Start the server and wait until it answers clients.

        Raises:
            ServiceError: what it needs is not there, the data folder is in use, or it did not come
                up (the message quotes its log).
        """
        if self.running:
            raise ServiceError(f"{self.name} already runs on port {self.port}")
        self.stop()  # of one that ended by itself, what is left
        if self._data is None:
            prefix = f"mindstream-{self.name.lower().replace(' ', '-')}-"
            self._data = Path(tempfile.mkdtemp(prefix=prefix))
            self._discard = weakref.finalize(self, shutil.rmtree, self._data, ignore_errors=True)
        self.data.mkdir(parents=True, exist_ok=True)
        self._install()
        claim = FolderClaim(
            self.data, wait_s=_PREDECESSOR_BUDGET_S, busy=f"{self.data} is in use by another server"
        )
        try:
            self._notify(f"starting {self.name}")
            self._launch(claim)
        finally:
            claim.release()
        self._notify(f"{self.name} listens on port {self.port}")

    def stop(self) -> None:
        """Shut the server down cleanly, within a budget; harmless when it does not run."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would.

        Raises:
            ServiceError: it was not started.
        """
        self._own().kill()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self._discard:
            self._discard()
            self._data = self._discard = None

    @abstractmethod
    def _install(self) -> None:
        """Find, and where necessary fetch, what the server needs; raises `ServiceError`."""

    @abstractmethod
    def _configure(self, ports: Sequence[int]) -> Launch:
        """Write the configuration for these ports, the first of which is for clients."""

    @abstractmethod
    def _serves(self, port: int) -> bool:
        """Whether a client gets an answer now; asked once the port accepts connections."""

    def _explain(self, output: str) -> str | None:
        """A plain account of why the server ended while starting, if its output tells."""
        return None

    def _own(self) -> GuardedProcess:
        if self._process is None:
            raise ServiceError(f"{self.name} does not run")
        return self._process

    def _launch(self, claim: FolderClaim) -> None:
        tries = 1 if self._ports or self._fixed_port else _PORT_TRIES
        while True:
            tries -= 1
            ports = self._ports or free_ports(self.ports_needed)
            if self._fixed_port:
                ports[0] = self._fixed_port
            # Checked here, since another service on the port would answer in this one's place.
            if taken := [port for port in ports if not is_free(port)]:
                raise ServiceError(f"{self.name} cannot use port {taken[0]}: it is in use already")
            launch = self._configure(ports)
            began_at = self._begin_log()
            process = GuardedProcess(
                launch.command,
                log=self.log,
                stop_budget_s=launch.stop_budget_s,
                environment=launch.environment,
                folder=launch.folder,
                stop_signal=launch.stop_signal,
                afterwards=launch.afterwards,
                temporary=self.data if self._discard else None,
                claim=claim,
            )
            try:
                if self._wait_for(process, ports[0]):
                    self._process, self._ports = process, ports
                    return
                ended = not process.running
            finally:
                if self._process is not process:
                    process.kill()
            with self.log.open(errors="replace") as log:
                log.seek(began_at)
                output = log.read()
            if ended and tries and "address already in use" in output.lower():
                continue
            what = "ended" if ended else f"did not answer in {_START_BUDGET_S:.0f} s"
            raise ServiceError(
                self._explain(output)
                or f"{self.name} {what} while starting; the end of {self.log}:\n{tail(self.log)}"
            )

    def _begin_log(self) -> int:
        """Set a large log aside as ``server.log.1``; where in the file the new part begins."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size > _LOG_KEEP_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
            size = 0
        return size

    def _wait_for(self, process: GuardedProcess, port: int) -> bool:
        deadline = time.monotonic() + _START_BUDGET_S
        while process.running and time.monotonic() < deadline:
            if answers(port) and self._serves(port):
                return process.running
            time.sleep(0.05)
        return False
