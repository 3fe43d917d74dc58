"""What the items topic says: the last record of each item. For any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from encoder.item_record import ItemRecord

Offsets = Mapping[int, int]
"""Partition of the items topic → next offset to read: how far something has taken it into account.
A partition that is not in it was not read at all."""


class AnnouncedItems:
    """Grows as the topic is read, and hands out what is new."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._lock = threading.Lock()
        self._records: dict[str, ItemRecord] = {}
        self._fresh: dict[str, ItemRecord] = {}
        self._next: dict[int, int] = {}

    def __len__(self) -> int:
        """Of how many items something was said."""
        return len(self._records)

    @property
    def offsets(self) -> dict[int, int]:
        """How far the topic was read."""
        with self._lock:
            return dict(self._next)

    def apply(self, records: Iterable[ItemRecord], offsets: Offsets) -> None:
        """Take records into account, those of a partition in their order.

        Args:
            records: some more of the topic.
            offsets: how far it is read with them.
        """
        with self._lock:
            for record in records:
                self._records[record.item_id] = record
                # To the end: whoever writes them must do so in the order of their offsets.
                self._fresh.pop(record.item_id, None)
                self._fresh[record.item_id] = record
            self._next.update(offsets)

    def take(self) -> tuple[list[ItemRecord], dict[int, int]]:
        """What came since this was last asked, each item once, and how far the topic was read."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
            return list(fresh.values()), dict(self._next)

    def since(self, offsets: Offsets) -> list[ItemRecord]:
        """The last records of items that changed after this, in the order of their offsets."""
        with self._lock:
            start = known(offsets, self._next)
            found = [r for r in self._records.values() if r.offset >= start.get(r.partition, 0)]
        return sorted(found, key=lambda record: (record.partition, record.offset))


def known(offsets: Offsets, end: Offsets) -> dict[int, int]:
    """Offsets without those beyond the end: of a topic that was deleted and created again."""
    return {one: at for one, at in offsets.items() if at <= end.get(one, 0)}
