"""Where the store may hold rows of clicks that nobody has committed.

A predecessor may have written rows for records after its last commit, and so may we, for batches
that were abandoned. Until the same records are past again, a user's rows may be those of a window
that nobody knows. Once we have written a user, they are ours. Only so many records can be written
without being committed: a long backlog is not unsettled for long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from encoder.records import Record


@dataclass(slots=True)
class _Stretch:
    until: int
    records_left: int
    written: set[str] = field(default_factory=set)


class Unsettled:
    """Stretches of partitions, from the next record to be applied on."""

    def __init__(self, records: int) -> None:
        """Nothing is unsettled yet.

        Args:
            records: the most records of a partition that a worker writes without committing them.
        """
        self._records = records
        self._stretches: dict[int, _Stretch] = {}

    def take(self, ends: Mapping[int, int]) -> None:
        """Partitions were taken over, of which nobody has polled anything after these offsets."""
        for partition, end in ends.items():
            self._stretches[partition] = _Stretch(end, self._records)

    def abandon(self, next_offsets: Mapping[int, int]) -> None:
        """Records up to these offsets may have been written by us and will be applied again."""
        for partition, offset in next_offsets.items():
            before = self._stretches.get(partition)
            until = max(offset, before.until if before else 0)
            self._stretches[partition] = _Stretch(until, self._records)

    def drop(self, partition: int) -> None:
        """The partition was lost."""
        self._stretches.pop(partition, None)

    def apply(
        self, records: Sequence[Record], users: Mapping[int, Collection[str]]
    ) -> set[tuple[int, str]]:
        """Records are about to be applied, and the rows of users to be written who changed by them.

        Args:
            records: of a batch.
            users: partition → users whose rows the batch will write.

        Returns:
            Partition and user of those whose rows may be of a window that nobody knows.
        """
        found: set[tuple[int, str]] = set()
        for partition, count in Counter(record.partition for record in records).items():
            stretch = self._stretches.get(partition)
            if stretch is None:
                continue
            if any(r.offset < stretch.until for r in records if r.partition == partition):
                fresh = set(users.get(partition, ())) - stretch.written
                found.update((partition, user_id) for user_id in fresh)
                stretch.written |= fresh
                stretch.records_left -= count
                if stretch.records_left > 0:
                    continue
            del self._stretches[partition]
        return found
