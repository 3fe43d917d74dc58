"""Keeps a command from running twice at once on the same files."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encoder.errors import Unavailable


class RunsAlready(Unavailable):
    """Another process does it at the moment."""


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock on a file, which the system lets go of whatever becomes of the process.

    Raises:
        RunsAlready: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise RunsAlready(f"another process is {doing} already ({path} is locked)") from exc
        yield
