"""A release as look-ups have it now: with the items announced since, without those withdrawn.

N items of the release's own table, M rows after it, D vector width. A position is an item's row
less 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from encoder.announced_items import Offsets
from encoder.item_index import ItemIndex, seen_of
from encoder.mind_encoder import InterestBatch, MindEncoder
from encoder.nearest import nearest_rows


class LiveRelease:
    """Begins with the release's own items."""

    def __init__(self, encoder: MindEncoder) -> None:
        """Take an encoder into whose further items nobody else puts any."""
        self.encoder = encoder
        self._own = encoder.release.items[1:]
        self._withdrawn: set[int] = set()  # positions of the release's own
        self._seen: Offsets = {}

    @property
    def name(self) -> str:
        """The release's name."""
        return self.encoder.release.name

    def __len__(self) -> int:
        """How many items are retrieved."""
        return len(self._own) - len(self._withdrawn) + len(self.encoder.further)

    def follow(self, index: ItemIndex) -> None:
        """Take what changed in the store since the last time into account.

        Raises:
            Unavailable: it does not answer.
        """
        changes = index.changes_since(self.name, self._seen)
        if changes is None:
            return
        row_of, further = self.encoder.release.row_of, self.encoder.further
        for item_id, vector, out in zip(
            changes.item_ids, changes.vectors, changes.withdrawn.tolist(), strict=True
        ):
            row = row_of.get(item_id)
            if row is None:
                further.put_vector(item_id, None if out else vector)
            elif out:
                self._withdrawn.add(row - 1)
            else:
                self._withdrawn.discard(row - 1)
        self._seen = seen_of(changes, self._seen)

    def nearest(self, batch: InterestBatch, n: int) -> NDArray[np.int64]:
        """Positions of the n items nearest to each user's interests, as `nearest_rows` has them."""
        return nearest_rows(
            batch.vectors,
            batch.counts,
            self._own,
            n,
            further=self.encoder.further.table,
            left_out=self._not_retrieved(),
        )

    def coverage(self, batch: InterestBatch, n: int) -> float:
        """Share of the items retrieved that are among the n nearest of any user."""
        found = self.nearest(batch, n)
        return len(np.unique(found[found >= 0])) / max(1, len(self))

    def retrieved(self) -> list[str]:
        """The items, the release's own first."""
        own = self.encoder.release.item_ids
        if self._withdrawn:
            own = [one for place, one in enumerate(own) if place not in self._withdrawn]
        return [*own, *self.encoder.further]

    def positions(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Of items, int64; -1 for those that are not retrieved."""
        found = self.encoder.rows(item_ids).astype(np.int64) - 1
        if self._withdrawn:
            found[np.isin(found, list(self._withdrawn))] = -1
        return found

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of items that are retrieved, float32 (n, D)."""
        own = positions < len(self._own)
        if own.all():
            return self._own[positions]
        found = np.empty((len(positions), self._own.shape[1]), np.float32)
        found[own] = self._own[positions[own]]
        found[~own] = self.encoder.further.table[positions[~own] - len(self._own)]
        return found

    def _not_retrieved(self) -> NDArray[np.int64]:
        free = [row - 1 for row in self.encoder.further.free]
        return np.array([*self._withdrawn, *free], np.int64)
