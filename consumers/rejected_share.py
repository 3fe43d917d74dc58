"""How large a share of the newest records was rejected. Pure.

A bad record now and then is set aside, and nobody needs to hurry. A broken producer is another
matter: all that it writes would drain to the dead-letter topic, and nobody be told.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from consumers.batch import Rejected
from encoder.errors import Misconfigured
from encoder.records import Record

RECENT_RECORDS: Final = 1000
"""The share is that of the newest so many records, and is not judged before there are as many."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected record: its place among all records seen, from 0, and where and why."""

    place: int
    partition: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class RejectedShare:
    """What is known of the records up to the last batch that was committed.

    Attributes:
        topic: the clicks topic, for the message.
        limit: the share that may be rejected, from 0 to 1; 1 allows all.
        seen: records so far.
        recent: those of the newest `RECENT_RECORDS` that were rejected, oldest first.
    """

    topic: str
    limit: float
    seen: int = 0
    recent: tuple[Rejection, ...] = ()

    def after(self, records: Sequence[Record], rejected: Sequence[Rejected]) -> RejectedShare:
        """The share after one more batch. Keep the result only once the batch is committed.

        It is judged after every record, so how records fall into batches does not matter.

        Args:
            records: the batch.
            rejected: those of it that were rejected, in the same order.

        Raises:
            Misconfigured: the share was above the limit after one of the records. Says how large
                it was, why most were rejected, where one of them lies, and what to do.
        """
        seen = self.seen + len(records)
        recent = deque(self.recent)
        added = list(_placed(records, rejected, self.seen))
        # The share only grows with a rejected record, but the first time that it is judged, all
        # rejected ones may lie some way back.
        judged_at = {rejection.place for rejection in added} | {RECENT_RECORDS - 1}
        waiting = deque(added)
        for place in sorted(judged_at):
            if not self.seen <= place < seen:
                continue
            if waiting and waiting[0].place == place:
                recent.append(waiting.popleft())
            while recent and recent[0].place <= place - RECENT_RECORDS:
                recent.popleft()
            if place >= RECENT_RECORDS - 1 and len(recent) / RECENT_RECORDS > self.limit:
                raise self._too_many(recent)
        while recent and recent[0].place < seen - RECENT_RECORDS:
            recent.popleft()
        return RejectedShare(self.topic, self.limit, seen, tuple(recent))

    def _too_many(self, recent: deque[Rejection]) -> Misconfigured:
        reasons = Counter(rejection.reason for rejection in recent).most_common()
        newest = recent[-1]
        return Misconfigured(
            f"{len(recent) / RECENT_RECORDS:.1%} of the newest {RECENT_RECORDS} records of"
            f" {self.topic} were rejected ({', '.join(f'{r}: {n}' for r, n in reasons)}), the last"
            f" of them {self.topic}[{newest.partition}] at offset {newest.offset}; nothing of this"
            " batch is committed. Mend the producer, or raise"
            f" MINDSTREAM_WORKER__MAX_REJECTED_SHARE ({self.limit:g}; 1 allows all) to set such"
            " records aside and go on: `mindstream dead-letters` lists them and"
            " `mindstream replay` puts them back"
        )


def _placed(
    records: Sequence[Record], rejected: Sequence[Rejected], first_place: int
) -> Iterator[Rejection]:
    waiting = iter(rejected)
    following = next(waiting, None)
    for place, record in enumerate(records, start=first_place):
        if following is None:
            return
        if record is following.record:
            yield Rejection(place, record.partition, record.offset, following.reason)
            following = next(waiting, None)
