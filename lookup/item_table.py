"""A release's items in the reader's memory, searched exhaustively.

A catalogue of 100,000 items of width 64 takes 26 MB, and comparing a user's interests with all of
them takes less time than asking a store to: what is left of a look-up is one read by key. Until a
release's items are here, its store is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import Hit

_RETRY_AFTER_S: Final = 60.0

log = structlog.get_logger()


class ItemTable:
    """Items of one release."""

    def __init__(self, item_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep them.

        Args:
            item_ids: N distinct ids.
            vectors: float32 (N, D).
        """
        self._item_ids = item_ids
        self._columns = np.ascontiguousarray(vectors.T)

    def nearest(self, vectors: NDArray[np.float32], limit: int) -> list[list[Hit]]:
        """The items nearest to each of n vectors (n, D) by inner product, best first."""
        limit = min(limit, len(self._item_ids))
        if not limit:
            return [[] for _ in vectors]
        return [self._best(scores, limit) for scores in vectors @ self._columns]

    def _best(self, scores: NDArray[np.float32], limit: int) -> list[Hit]:
        rows = np.argpartition(scores, len(scores) - limit)[-limit:]
        rows = rows[np.argsort(-scores[rows])]
        return [Hit(self._item_ids[row], float(scores[row])) for row in rows.tolist()]


class ItemTables:
    """Has the table of the newest release it was asked to load, once that is loaded."""

    def __init__(self, load: Callable[[str, Callable[[], bool]], ItemTable | None]) -> None:
        """Load nothing yet.

        Args:
            load: makes the table of a release, None where there shall be none; is given what tells
                that it need not go on.
        """
        self._load = load
        self._lock = threading.Lock()
        self._wanted: str | None = None
        self._loaded: tuple[str, ItemTable | None] | None = None
        self._failed_at: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def want(self, release: str) -> None:
        """Begin to load a release's items, unless they are here or on their way."""
        with self._lock:
            failed = self._failed_at
            again = failed is not None and time.monotonic() - failed > _RETRY_AFTER_S
            if self._closed or (release == self._wanted and not again):
                return
            self._wanted, self._failed_at = release, None
            self._thread = threading.Thread(
                target=self._run, args=(release, self._thread), name="items", daemon=True
            )
            self._thread.start()

    def get(self, release: str) -> ItemTable | None:
        """The table of a release, None while it is not here."""
        loaded = self._loaded
        return loaded[1] if loaded is not None and loaded[0] == release else None

    @property
    def loading(self) -> bool:
        """Whether a release's items are on their way."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Load no more."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, release: str, before: threading.Thread | None) -> None:
        def superseded() -> bool:
            return self._closed or self._wanted != release

        if before is not None:
            before.join()
        try:
            table = self._load(release, superseded)
        except (Unavailable, Misconfigured) as exc:
            log.warning("items.not_loaded", release=release, error=str(exc))
            self._failed_at = time.monotonic()
            return
        if not superseded():
            self._loaded = release, table
