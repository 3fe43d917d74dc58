"""A release's items in the reader's memory, searched exhaustively.

A catalogue of 100,000 items of width 64 takes 26 MB, and comparing a user's interests with all of
them takes less time than asking a store to: what is left of a look-up is one read by key. Until a
release's items are here, its store is asked; from then on it is asked what changed, every second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from encoder.announced_items import Offsets
from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import Hit
from encoder.item_index import ItemChanges, seen_of
from encoder.mix_index import StoredMix
from lookup.inner_products import InnerProducts, largest

_RETRY_AFTER_S: Final = 60.0
_FOLLOW_S: Final = 1.0

log = structlog.get_logger()


class ItemTable:
    """Items of one release, some of them added since it was loaded. Does not change."""

    def __init__(self, item_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep them.

        Args:
            item_ids: N distinct ids.
            vectors: float32 (N, D).
        """
        self._item_ids = item_ids
        self._products = InnerProducts(vectors)
        self._seen: Offsets = {}
        self._added: dict[str, NDArray[np.float32]] = {}
        self._out = np.zeros(0, np.int64)  # rows of items that were withdrawn, or changed
        self._added_ids: list[str] = []
        self._added_products: InnerProducts | None = None
        self._popularity: tuple[StoredMix, NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self._item_ids) - len(self._out) + len(self._added)

    def __contains__(self, item_id: object) -> bool:
        if item_id in self._added:
            return True
        row = self._row_of.get(item_id) if isinstance(item_id, str) else None
        return row is not None and row not in self._out

    @property
    def seen(self) -> Offsets:
        """By partition of the items topic, the offset of the next change to see."""
        return self._seen

    def with_changes(self, changes: ItemChanges) -> ItemTable:
        """The table after some changes; shares with this one what did not change."""
        rows = [row for one in changes.item_ids if (row := self._row_of.get(one)) is not None]
        after = copy(self)
        after._out = np.union1d(self._out, np.array(rows, np.int64))
        after._seen = seen_of(changes, self._seen)
        after._added = dict(self._added)
        for place, item_id in enumerate(changes.item_ids):
            after._added.pop(item_id, None)
            if not changes.withdrawn[place]:
                after._added[item_id] = changes.vectors[place]
        after._added_ids = list(after._added)
        vectors = list(after._added.values())
        after._added_products = InnerProducts(np.stack(vectors)) if vectors else None
        return after

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self._item_ids)}

    def nearest(self, vectors: NDArray[np.float32], limit: int) -> list[list[Hit]]:
        """The items nearest to each of n vectors (n, D) by inner product, best first."""
        limit = min(limit, len(self))
        if not limit:
            return [[] for _ in vectors]
        return [self._best(of_one, limit) for of_one in self._scores(vectors)]

    def nearest_to_any(self, vectors: NDArray[np.float32], limit: int) -> list[Hit]:
        """The items with the largest inner product with any of n vectors (n, D), best first."""
        limit = min(limit, len(self))
        if not limit or not len(vectors):
            return []
        return self._best(self._scores(vectors).max(axis=0), limit)

    def best(
        self,
        vectors: NDArray[np.float32],
        stored: StoredMix,
        own: Mapping[str, float],
        limit: int,
    ) -> list[Hit]:
        """The items with the highest score by a mix, best first.

        Args:
            vectors: float32 (n, D), a user's interests; there may be none.
            stored: of the release.
            own: what the user's own items count, but for `alike`.
            limit: how many.
        """
        limit = min(limit, len(self))
        if not limit:
            return []
        mix, popularity = stored.mix, self._popularity_by_row(stored)
        near = np.zeros(len(popularity), np.float32)
        if len(vectors):
            near = self._scores(vectors).max(axis=0)
            near[self._out] = 0
        scores = mix.interests * near + popularity
        for item_id, counts in own.items():
            row = self._row(item_id)
            if row is not None:
                scores[row] += counts + mix.alike * near[row]
        scores[self._out] = -np.inf
        return self._best(scores, limit)

    def _scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products of n vectors with all rows, those of added items last."""
        scores = self._products.of(vectors)
        scores[:, self._out] = -np.inf
        if self._added_products is None:
            return scores
        return np.concatenate([scores, self._added_products.of(vectors)], axis=1)

    def _popularity_by_row(self, stored: StoredMix) -> NDArray[np.float32]:
        found = self._popularity
        if found is None or found[0] is not stored:
            counts = [stored.popularity.get(item_id, 0.0) for item_id in self._item_ids]
            found = self._popularity = stored, np.array(counts, np.float32)
        added = [stored.popularity.get(item_id, 0.0) for item_id in self._added_ids]
        return np.concatenate([found[1], np.array(added, np.float32)])

    def _row(self, item_id: str) -> int | None:
        """The row of an item that is retrieved."""
        if item_id in self._added:
            return len(self._item_ids) + self._added_ids.index(item_id)
        row = self._row_of.get(item_id)
        return row if row is not None and row not in self._out else None

    def _best(self, scores: NDArray[np.float32], limit: int) -> list[Hit]:
        rows = largest(scores, limit)
        found = zip(rows.tolist(), scores[rows].tolist(), strict=True)
        return [Hit(self._item_id(row), score) for row, score in found]

    def _item_id(self, row: int) -> str:
        own = len(self._item_ids)
        return self._item_ids[row] if row < own else self._added_ids[row - own]


class ItemTables:
    """Has the table of the newest release it was asked to load, once that is loaded."""

    def __init__(
        self,
        load: Callable[[str, Callable[[], bool]], ItemTable | None],
        changed: Callable[[str, ItemTable], ItemTable | None] = lambda release, table: None,
    ) -> None:
        """Load nothing yet.

        Args:
            load: makes the table of a release, None where there shall be none; is given what tells
                that it need not go on.
            changed: the table of a release as it is now, None if it is as it was.
        """
        self._load = load
        self._changed = changed
        self._loading = False
        self._moved = threading.Event()
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
            self._moved.set()
            self._loading = True
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
        return self._loading

    def close(self) -> None:
        """Load no more."""
        with self._lock:
            self._closed = True
            self._moved.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, release: str, before: threading.Thread | None) -> None:
        def superseded() -> bool:
            return self._closed or self._wanted != release

        if before is not None:
            before.join()
        self._moved.clear()
        try:
            table = self._load(release, superseded)
        except (Unavailable, Misconfigured) as exc:
            log.warning("items.not_loaded", release=release, error=str(exc))
            self._failed_at = time.monotonic()
            self._loading = superseded()
            return
        if not superseded():
            self._loaded = release, table
            self._loading = False
            if table is not None:
                self._follow(release, table, superseded)

    def _follow(self, release: str, table: ItemTable, superseded: Callable[[], bool]) -> None:
        while not superseded():
            try:
                changed = self._changed(release, table)
            except (Unavailable, Misconfigured) as exc:
                log.warning("items.not_followed", release=release, error=str(exc))
                changed = None
            if changed is not None and not superseded():
                table = changed
                self._loaded = release, table
            self._moved.wait(_FOLLOW_S)
