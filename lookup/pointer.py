"""Which release is in use, without look-ups waiting to be told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import ReleaseInUse

_TTL_S: Final = 1.0


class Pointer:
    """The release in use as of a second ago at most. Safe to use from several threads.

    A strong read takes a time tick on a Milvus server, so it is made while what is known still
    counts, on a thread of its own. Where look-ups are frequent, none waits for it.
    """

    def __init__(
        self,
        read: Callable[[], ReleaseInUse | None],
        *,
        ttl_s: float = _TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet.

        Args:
            read: asks the store; may raise Unavailable or Misconfigured.
            ttl_s: how old an answer may be, from when it was asked for.
            clock: seconds, as of time.monotonic.
        """
        self._read = read
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[ReleaseInUse, float] | None = None  # and when it was asked for
        self._counts_from = clock()  # answers to earlier questions do not count
        self._reader: threading.Thread | None = None
        self._closed = False

    def get(self) -> ReleaseInUse | None:
        """The release in use, None before the first.

        Raises:
            Whatever reading it does, where what is known is too old.
        """
        known = self._known
        age_s = self._clock() - known[1] if known else self._ttl_s
        if known is None or age_s >= self._ttl_s:
            return self._ask()
        if age_s >= self._ttl_s / 2:
            self._ask_meanwhile()
        return known[0]

    def forget(self) -> None:
        """Have the next call read it."""
        with self._lock:
            self._known, self._counts_from = None, self._clock()

    def close(self) -> None:
        """Read no more; waits for a read that is under way."""
        with self._lock:
            self._closed = True
            reader = self._reader
        if reader is not None:
            reader.join()

    def _ask(self) -> ReleaseInUse | None:
        asked_at = self._clock()
        found = self._read()
        with self._lock:
            if asked_at >= self._counts_from:
                self._known = None if found is None else (found, asked_at)
                self._counts_from = asked_at
        return found

    def _ask_meanwhile(self) -> None:
        with self._lock:
            if self._closed or (self._reader is not None and self._reader.is_alive()):
                return
            self._reader = threading.Thread(target=self._try, name="pointer", daemon=True)
            self._reader.start()

    def _try(self) -> None:
        with suppress(Unavailable, Misconfigured):  # who asks when it is too old is told
            self._ask()
