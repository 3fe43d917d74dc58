"""Which users' rows must be written once more, because a predecessor's last write may land late.

Whoever owned a partition before may have been stopped in the middle of a write, and its request may
reach the store after ours. It holds rows of the first records that it had not committed: the first
that we apply, or some that an owner between the two has applied a short while ago. So both's users
are noted, and written again when no request of a predecessor can be on its way any more: by a batch
that has clicks of theirs, or a few at a time beside the clicks of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

_USERS: Final = 64  # a click waits for so many at least
_USERS_PER_S: Final = 256.0
_HURRY_S: Final = 0.1  # to be done in, once it is too late


@dataclass(slots=True)
class _Unsettled:
    due_at: float
    records_left: int
    user_ids: set[str]


class Settling:
    """The partitions taken over a short while ago, and their users to write again.

    Times are in seconds, of a clock that does not go back.
    """

    def __init__(self, *, after_s: float, within_s: float, records: int) -> None:
        """Nothing is unsettled yet.

        Args:
            after_s: how long after a takeover a predecessor's write may still land. It is sent
                before the predecessor's lease is over and given up with it, so a session
                time-out is enough.
            within_s: how long it may take from then on.
            records: the most records that a worker writes without committing them.
        """
        self._after_s = after_s
        self._within_s = within_s
        self._records = records
        self._partitions: dict[int, _Unsettled] = {}
        self._piece: dict[int, list[str]] | None = None  # what `next` gave and is on its way
        self._last_at = 0.0  # when that was

    def take(self, recent: Mapping[int, set[str]], now: float) -> None:
        """Partitions were taken over now.

        Args:
            recent: partition → users whose window was written a short while ago.
            now: the time.
        """
        for partition, user_ids in recent.items():
            due_at = now + self._after_s
            self._partitions[partition] = _Unsettled(due_at, self._records, user_ids)

    def drop(self, partition: int) -> None:
        """The partition was lost."""
        self._partitions.pop(partition, None)

    def add(
        self, windows: Mapping[int, Iterable[str]], records: Mapping[int, int], now: float
    ) -> None:
        """A batch is about to be written that was encoded at this time or later.

        Args:
            windows: partition → users whose rows it writes.
            records: partition → records that it has of it.
            now: the time.
        """
        for partition, count in records.items():
            unsettled = self._partitions.get(partition)
            if unsettled is None or now >= unsettled.due_at:
                continue
            if unsettled.records_left > 0:
                unsettled.user_ids.update(windows.get(partition, ()))
                unsettled.records_left -= count

    def again(self, partitions: Iterable[int]) -> None:
        """Batches with records of these were abandoned, whether or not their rows were written."""
        self._piece = None
        for partition in partitions:
            if partition in self._partitions:
                self._partitions[partition].records_left = self._records

    def among(self, users: Mapping[int, Collection[str]], now: float) -> dict[int, set[str]]:
        """Those of a batch's users who are due, by partition."""
        return {
            partition: found
            for partition, one in self._partitions.items()
            if one.due_at <= now and (found := one.user_ids.intersection(users.get(partition, ())))
        }

    def wait_s(self, now: float) -> float | None:
        """Seconds until `next` has something; None where it will have nothing of itself."""
        due = self._due(now)
        if not self._partitions or self._piece is not None:
            return None
        if not due:
            return min(one.due_at for one in self._partitions.values()) - now
        left = sum(len(one.user_ids) for one in due.values())
        return max(0.0, self._last_at + min(_USERS, left) / self._per_s(due, now) - now)

    def next(self, now: float, *, most: int) -> dict[int, list[str]] | None:
        """A partition and some of its users to be written now; None where there are none.

        They are few, or as many as it takes to be done in time. No others come before `done` or
        `again` is told of these.

        Args:
            now: the time.
            most: users.
        """
        if self.wait_s(now) != 0.0 or not (due := self._due(now)):
            return None
        partition, one = next(iter(due.items()))
        since_s = now - max(self._last_at, one.due_at)
        users = min(most, max(_USERS, int(self._per_s(due, now) * since_s)))
        self._last_at = now
        self._piece = {partition: sorted(islice(one.user_ids, users))}
        return self._piece

    def done(self, users: Mapping[int, Iterable[str]]) -> list[int]:
        """These were written while they were due; tells which partitions are settled with them."""
        if users is self._piece:
            self._piece = None
        settled = []
        for partition, user_ids in users.items():
            if (one := self._partitions.get(partition)) is not None:
                one.user_ids.difference_update(user_ids)
                if not one.user_ids:
                    self.drop(partition)
                    settled.append(partition)
        return settled

    # Inside --------------------------------------------------------------------------------

    def _due(self, now: float) -> dict[int, _Unsettled]:
        due = {p: one for p, one in self._partitions.items() if one.due_at <= now}
        for partition in [p for p, one in due.items() if not one.user_ids]:
            self.drop(partition)
            del due[partition]
        return due

    def _per_s(self, due: Mapping[int, _Unsettled], now: float) -> float:
        """Users a second, so that all of them are written in time."""
        left = sum(len(one.user_ids) for one in due.values())
        left_s = min(one.due_at for one in due.values()) + self._within_s - now
        return max(_USERS_PER_S, left / max(left_s, _HURRY_S))
