"""Keeps one command running for as long as its owner lives, and not a moment longer.

Run as a script between an owner and its command (see `deploy.guarded_process`). Standard input is
the reading end of a pipe that only the owner can write to: a byte is an order, and the end of the
pipe is the end of the owner, whatever caused it. Standard output carries the command's pid back,
standard error is the command's log. The command has a process group of its own, and all of it is
ended.

Nothing but the standard library is needed: the owner starts it with ``-I -S``, in milliseconds.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

STOP = b"s"
KILL = b"k"


def guard(order: dict[str, Any]) -> int:
    """Run ``order["command"]`` until it ends or must end; returns a shell-like exit status."""
    terminated = threading.Event()

    def terminate(signum: int, frame: FrameType | None) -> None:
        terminated.set()

    # Handled rather than ignored: what is ignored here would be ignored by the command too.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, terminate)
    child = subprocess.Popen(
        order["command"],
        cwd=order["folder"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        stderr=sys.stderr.fileno(),
        start_new_session=True,
        pass_fds=order["keep_fds"],
    )
    os.write(sys.stdout.fileno(), f"{child.pid}\n".encode())
    os.close(sys.stdout.fileno())
    abandoned = threading.Event()

    def send(signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)

    def stop() -> None:
        send(order["stop_signal"])
        time.sleep(order["stop_budget_s"])
        send(signal.SIGKILL)

    def obey_owner() -> None:
        word = b""
        # A fork of the owner may hold the pipe open, hence the second look at who the parent is.
        while os.getppid() == order["owner"]:
            if select.select([sys.stdin], [], [], 1.0)[0]:
                word = os.read(sys.stdin.fileno(), 1)
                break
        if word == KILL:
            send(signal.SIGKILL)
            return
        if word != STOP:
            abandoned.set()
        stop()

    def obey_signals() -> None:
        terminated.wait()
        stop()

    for obey in (obey_owner, obey_signals):
        threading.Thread(target=obey, daemon=True).start()
    status = child.wait()
    send(signal.SIGKILL)  # whoever is left of the group
    if order["afterwards"]:
        subprocess.run(order["afterwards"], stdin=subprocess.DEVNULL, stdout=2, check=False)
    if abandoned.is_set() and order["temporary"]:
        shutil.rmtree(order["temporary"], ignore_errors=True)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(guard(json.loads(sys.argv[1])))
