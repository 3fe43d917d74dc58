"""Keeps writers from running away from readers.

A Milvus server acknowledges rows once they are logged, and indexes them afterwards. When it is
given more than it can index for long, it falls behind, and readers, who ask to see all but the last
few seconds, wait for it and time out. So a thread asks, as long as something is written, how long
it takes until all that was written can be read, and whoever writes waits while that is too long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from encoder.errors import Misconfigured, Unavailable

_EVERY_S: Final = 0.5
_LOOK_S: Final = 0.05


class Pace:
    """The distance between writers and readers of one collection. Safe to use from many threads."""

    def __init__(
        self,
        read: Callable[[], object],
        *,
        most_s: float,
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread, which does nothing before something is written.

        Args:
            read: returns once all that was written before the call can be read; may raise
                Unavailable or Misconfigured, and is then called again.
            most_s: how far readers may be behind.
            every_s: how long to wait between two reads.
            clock: seconds, as of time.monotonic.
        """
        self._read = read
        self._most_s = most_s
        self._every_s = every_s
        self._clock = clock
        self._changed = threading.Condition()
        self._written = False
        self._since: float | None = None  # when the read under way began
        self._closed = False
        threading.Thread(target=self._run, name="pace", daemon=True).start()

    @property
    def behind_s(self) -> float:
        """For how long, so far, what had been written could not be read; 0 if nobody waits."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def wrote(self) -> None:
        """Tell that something was written."""
        with self._changed:
            self._written = True
            self._changed.notify_all()

    def wait(self, until: float) -> None:
        """Return once readers are not too far behind, or at `until` on the clock."""
        with self._changed:
            while self.behind_s > self._most_s and self._clock() < until:
                self._changed.wait(_LOOK_S)

    def close(self) -> None:
        """Let the thread end; a read that is under way is not waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._written or self._closed)
                if self._closed:
                    return
                self._written = False
                self._since = self._clock()
            while not self._readable():
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, self._every_s):
                        return
            with self._changed:
                self._since = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed, self._every_s)

    def _readable(self) -> bool:
        with suppress(Unavailable, Misconfigured):
            self._read()
            return True
        return False
