"""A child process that cannot outlive its owner, not even when the owner is killed outright."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy import guardian

_GUARDIAN_GRACE_S = 30.0  # on top of the stop budget: removing a container, a slow machine


class ServiceError(RuntimeError):
    """A local service could not be started, or is not in the state that a call needs."""


class FolderClaim:
    """An exclusive claim on a folder, held until the last process that inherited it is gone."""

    def __init__(self, folder: Path, *, wait_s: float, busy: str) -> None:
        """Claim ``folder``, which must exist.

        Args:
            folder: the claim is a file ``.claim`` in it, with the claiming process's id.
            wait_s: how long the claim of a process that has died may take to go away: its
                guardian is still stopping what it left.
            busy: what to say of a claim that stays.

        Raises:
            ServiceError: somebody else's claim stays.
        """
        self._file = (folder / ".claim").open("a+", encoding="utf-8")
        deadline = time.monotonic() + wait_s
        while not self._lock():
            self._file.seek(0)
            owner = self._file.read()
            if _is_running(owner) or time.monotonic() >= deadline:
                self._file.close()
                raise ServiceError(f"{busy} (started by process {owner or 'unknown'})")
            time.sleep(0.05)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def fileno(self) -> int:
        """The descriptor to hand to heirs."""
        return self._file.fileno()

    def release(self) -> None:
        """Give up this process's share of the claim; heirs keep theirs."""
        self._file.close()


class GuardedProcess:
    """A command in a process group of its own, which ends with its owner (see `guardian`)."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        stop_budget_s: float,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        afterwards: Sequence[str] = (),
        temporary: Path | None = None,
        claim: FolderClaim | None = None,
    ) -> None:
        """Start the command.

        Args:
            command: program and arguments.
            log: file that the command's output is appended to.
            stop_budget_s: seconds between ``stop_signal`` and SIGKILL.
            environment: instead of the owner's.
            folder: to run in, instead of the owner's.
            stop_signal: what the command takes as the request to end.
            afterwards: a command to run when the first one has ended, for what no signal reaches.
            temporary: a folder to delete if the owner dies without having stopped the command.
            claim: inherited by the guardian and the command.

        Raises:
            ServiceError: the command cannot be executed.
        """
        self._stop_budget_s = stop_budget_s
        keep_fds = [claim.fileno()] if claim else []
        order = {
            "owner": os.getpid(),
            "command": list(command),
            "folder": str(folder) if folder else None,
            "stop_budget_s": stop_budget_s,
            "stop_signal": int(stop_signal),
            "keep_fds": keep_fds,
            "afterwards": list(afterwards),
            "temporary": str(temporary) if temporary else None,
        }
        # Neither end of these pipes is inheritable: no other child of the owner keeps them open.
        orders_read, self._orders = os.pipe()
        answer_read, answer = os.pipe()
        with log.open("ab") as output:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, json.dumps(order)],
                stdin=orders_read,
                stdout=answer,
                stderr=output,
                env=None if environment is None else dict(environment),
                pass_fds=keep_fds,
                # Ctrl-C goes to the owner alone, which then stops its children in its own order.
                start_new_session=True,
            )
        os.close(orders_read)
        os.close(answer)
        with os.fdopen(answer_read) as lines:
            pid = lines.readline()
        if not pid:
            self._finish()
            raise ServiceError(f"cannot run {command[0]}:\n{tail(log)}")
        self.pid = int(pid)

    @property
    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return self._guardian.poll() is None

    def stop(self) -> None:
        """Ask the command to end, insist once its budget is spent; returns when it is gone."""
        self._tell(guardian.STOP)

    def kill(self) -> None:
        """End the command with SIGKILL, as a crash would; returns when it is gone."""
        self._tell(guardian.KILL)

    def _tell(self, word: bytes) -> None:
        if self._orders < 0:
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            os.write(self._orders, word)
        self._finish()

    def _finish(self) -> None:
        os.close(self._orders)
        self._orders = -1
        try:
            status = self._guardian.wait(self._stop_budget_s + _GUARDIAN_GRACE_S)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            status = self._guardian.wait()
        if status < 0:  # the guardian itself was killed: its work is left to us
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log file, to quote in an error; empty when there is no such file."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65_536))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
