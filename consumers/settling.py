"""Which users' rows must be written once more, because a predecessor's last write may land late.

Whoever owned a partition before may have been stopped in the middle of a write, and its request may
reach the store after ours. It holds rows of the first records that it had not committed: the first
that we apply, or some that an owner between the two has applied a short while ago. So both's users
are noted, and written again when no request of a predecessor can be on its way any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice


@dataclass(slots=True)
class _Unsettled:
    due_at: float
    records_left: int
    user_ids: set[str]


class Settling:
    """The partitions taken over a short while ago, and their users to write again."""

    def __init__(self, *, after_s: float, records: int) -> None:
        """Nothing is unsettled yet.

        Args:
            after_s: how long after a takeover a predecessor's write may still land. It is sent
                before the predecessor's lease is over and given up with it, so a session
                time-out is enough.
            records: the most records that a batch has.
        """
        self._after_s = after_s
        self._records = records
        self._partitions: dict[int, _Unsettled] = {}

    def take(self, recent: Mapping[int, set[str]], now: float) -> None:
        """Partitions were taken over now.

        Args:
            recent: partition → users whose window was written a short while ago.
            now: seconds since 1970.
        """
        for partition, user_ids in recent.items():
            due_at = now + self._after_s
            self._partitions[partition] = _Unsettled(due_at, self._records, user_ids)

    def drop(self, partition: int) -> None:
        """The partition was lost."""
        self._partitions.pop(partition, None)

    def add(self, windows: Mapping[int, Iterable[str]], records: Mapping[int, int]) -> None:
        """A batch was committed.

        Args:
            windows: partition → users whose rows were written.
            records: partition → records that the batch had of it.
        """
        for partition, count in records.items():
            unsettled = self._partitions.get(partition)
            if unsettled is not None and unsettled.records_left > 0:
                unsettled.user_ids.update(windows.get(partition, ()))
                unsettled.records_left -= count

    def due(self, now: float, *, most: int) -> tuple[int, list[str]] | None:
        """A partition and some of its users to be written again now; None where there are none.

        Args:
            now: seconds since 1970.
            most: users at once.
        """
        for partition, one in list(self._partitions.items()):
            if one.due_at <= now:
                if one.user_ids:
                    return partition, sorted(islice(one.user_ids, most))
                self.drop(partition)
        return None

    def done(self, partition: int, user_ids: Iterable[str]) -> bool:
        """These users were written again; tells whether that was the last of the partition."""
        left = self._partitions[partition].user_ids
        left.difference_update(user_ids)
        if not left:
            self.drop(partition)
        return not left
