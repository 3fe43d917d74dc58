"""A worker process that a fault is done to, with a log of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from encoder.settings import Settings
from mindstream.environment import environment_of
from tests.deployment import wait_until

_END_S = 120.0


class Worker:
    """A process of `tests.faults.faulty_worker`."""

    def __init__(self, settings: Settings, log: Path, *fate: str, **environment: str) -> None:
        """Start it.

        Args:
            settings: as the worker is to read them.
            log: file for what it prints.
            fate: arguments of `tests.faults.faulty_worker`.
            environment: further variables.
        """
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.faulty_worker", *fate],
                env={**os.environ, **environment_of(settings), **environment},
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended; a stopped one has not."""
        return self._process.poll() is None

    def check_running(self) -> None:
        """Raises AssertionError, with the end of its log, if it has ended."""
        code = self._process.poll()
        assert code is None, f"the worker ended with {code}:\n{self.log()[-3000:]}"

    def log(self) -> str:
        """All it printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, event: str) -> None:
        """Until it has logged an event; raises AssertionError if it ends before."""

        def logged() -> bool:
            ended = not self.running
            if event in self.log():
                return True
            assert not ended, f"the worker ended before {event}:\n{self.log()[-3000:]}"
            return False

        wait_until(logged, f"{event} of a worker")

    def wait_killed(self) -> None:
        """Until it has met its fate."""
        code = self._process.wait(_END_S)
        assert code == -signal.SIGKILL, f"exit code {code}:\n{self.log()[-3000:]}"

    def wait_stopped(self) -> None:
        """Until SIGSTOP has reached it."""
        stat = Path(f"/proc/{self.pid}/stat")
        wait_until(
            lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a worker to be stopped"
        )

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._process.kill()
        self._process.wait(_END_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait_ended(self) -> int:
        """Until it has ended by itself; its exit code."""
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"the worker has not ended:\n{self.log()[-3000:]}") from exc

    def end(self) -> None:
        """Ask it to stop; it must do so and say that all was well."""
        self._process.terminate()
        code = self._process.wait(_END_S)
        assert code == 0, f"exit code {code}:\n{self.log()[-3000:]}"
