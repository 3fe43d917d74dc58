"""Which items are retrieved in a release, beyond those that it was published with.

`items_<release>` is what the store searches. `item_changes_<release>`, made when there is a
first change, has the last change of each item with its place on the items topic. Changes of one
partition of that topic have one writer at a time and are written in the order of their offsets, so
whoever has seen an offset has seen all before it: readers that hold items in their memory ask for
what lies behind what they have seen.

D vector width.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType

from encoder.announced_items import Offsets
from encoder.click import MAX_ID_BYTES
from encoder.milvus_store import Consistency, Lease, MilvusStore, for_ever

_FIELDS: Final = ("item_id", "partition", "offset", "withdrawn", "vector")


@dataclass(frozen=True, slots=True)
class ItemChanges:
    """What became of n items, those of a partition in the order of their offsets.

    Attributes:
        item_ids: distinct.
        vectors: float32 (n, D); zeros for items that are no longer retrieved.
        withdrawn: bool (n,), whether that is so.
        partitions: int64 (n,), of the items topic.
        offsets: int64 (n,), of the record that said so.
    """

    item_ids: list[str]
    vectors: NDArray[np.float32]
    withdrawn: NDArray[np.bool_]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item_ids)


class ItemIndex:
    """The items of releases in one store. Every call may raise Unavailable."""

    def __init__(self, store: MilvusStore) -> None:
        self._store = store
        self._created: set[str] = set()

    def change(
        self, release: str, changes: ItemChanges, *, budget_s: float, lease: Lease = for_ever
    ) -> None:
        """Write changes; may be repeated with the same outcome.

        Args:
            release: whose items these are.
            changes: of items whose newest change this is.
            budget_s: time for all of it, retries included.
            lease: for how long this process may write.

        Raises:
            LeaseRanOut: this process may no longer write; some of it may be written.
            Unavailable: the store did not take it within the budget.
        """
        if not len(changes):
            return
        deadline = time.monotonic() + budget_s
        items, gone = items_of(release), changes.withdrawn
        kept = [one for one, out in zip(changes.item_ids, gone.tolist(), strict=True) if not out]
        withdrawn = [one for one, out in zip(changes.item_ids, gone.tolist(), strict=True) if out]
        columns = {"item_id": kept, "vector": changes.vectors[~gone]}
        self._store.upsert(items, columns, deadline=deadline, lease=lease)
        self._store.delete(items, "item_id", withdrawn, deadline=deadline, lease=lease)
        # Last, since it is what readers go by.
        self._create(release, changes.vectors.shape[1])
        columns = {
            "item_id": changes.item_ids,
            "partition": changes.partitions,
            "offset": changes.offsets,
            "withdrawn": gone.astype(np.int64),  # we write no other numbers
            "vector": changes.vectors,
        }
        self._store.upsert(_changes(release), columns, deadline=deadline, lease=lease)

    def changes_since(
        self, release: str, offsets: Offsets, consistency: Consistency = "Bounded"
    ) -> ItemChanges | None:
        """The last changes of items that changed after what was seen, in any order.

        Args:
            release: whose items.
            offsets: by partition of the items topic, the next offset to see.
            consistency: Milvus's level.
        """
        if not self._store.exist(_changes(release)):
            return None
        where = f"partition not in {sorted(offsets)}" if offsets else ""
        for partition, at in sorted(offsets.items()):
            where += f" or (partition == {partition} and offset >= {at})"
        rows = list(
            self._store.rows(
                _changes(release), "item_id", _FIELDS[1:], where=where, consistency=consistency
            )
        )
        if not rows:
            return None
        return ItemChanges(
            item_ids=[row["item_id"] for row in rows],
            vectors=np.array([row["vector"] for row in rows], np.float32),
            withdrawn=np.array([row["withdrawn"] for row in rows], np.int64) == 1,
            partitions=np.array([row["partition"] for row in rows], np.int64),
            offsets=np.array([row["offset"] for row in rows], np.int64),
        )

    def withdrawn(self, release: str) -> set[str]:
        """The items that were withdrawn, as of their last change; strongly consistent."""
        name = _changes(release)
        if not self._store.exist(name):
            return set()
        rows = self._store.rows(name, "item_id", (), where="withdrawn == 1")
        return {row["item_id"] for row in rows}

    def drop(self, release: str) -> None:
        """Drop what was changed; nothing is no error."""
        self._created.discard(release)
        self._store.drop(_changes(release))

    def _create(self, release: str, width: int) -> None:
        if release in self._created:
            return
        scalars: Mapping[str, tuple[DataType, dict[str, int]]] = {
            "partition": (DataType.INT64, {}),
            "offset": (DataType.INT64, {}),
            "withdrawn": (DataType.INT64, {}),
        }
        self._store.create(
            _changes(release), ("item_id", MAX_ID_BYTES), scalars, width, index_type="FLAT"
        )
        self._created.add(release)


def seen_of(changes: ItemChanges, before: Offsets) -> dict[int, int]:
    """The next offsets to see after these changes."""
    seen = dict(before)
    pairs: Iterable[tuple[int, int]] = zip(
        changes.partitions.tolist(), changes.offsets.tolist(), strict=True
    )
    for partition, offset in pairs:
        seen[partition] = max(seen.get(partition, 0), offset + 1)
    return seen


def items_of(release: str) -> str:
    """The collection of a release's items."""
    return f"items_{release}"


def _changes(release: str) -> str:
    return f"item_changes_{release}"
