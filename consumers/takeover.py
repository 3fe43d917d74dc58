"""What a worker does with partitions it is given, before it serves them.

It restores their windows, and fills the served release's collection where no owner has done so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog
from kafka import OffsetAndMetadata

from consumers.click_topic import ClickTopic
from consumers.served_releases import Served, ServedReleases
from consumers.transactions import Outdated
from consumers.window_store import WindowStore
from encoder.announced_items import Offsets
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.release import Release
from encoder.release_topic import read_releases
from encoder.settings import Settings
from encoder.windows_topic import CorruptWindowRecord, Extent, check_extent, read_extents

log = structlog.get_logger()

_FILL_USERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Taken:
    """What a takeover did.

    Attributes:
        offsets: partition → next offset to read, as committed.
        ends: partition → offset that nobody had polled a record at or after. Those that never had
            an owner are left out, here and in `recent`.
        recent: partition → users whose window was written a short while ago.
        restored: windows read back.
        filled: users encoded for the release's collection.
        expired: clicks that were deleted from their topic before the group had read them.
        other_releases: announced ones that are not served, in whose collections there may be rows
            of these partitions' users.
        unfilled: served release → partitions yet to be filled for it, while they are served.
        items: (served release, partition filled before) → what was reported of items.
    """

    offsets: dict[int, int]
    ends: dict[int, int]
    recent: dict[int, set[str]]
    restored: int
    filled: int
    expired: int
    other_releases: list[str]
    unfilled: dict[str, list[int]]
    items: dict[tuple[str, int], Offsets]


class Takeover:
    """Takes partitions over for the releases that are served."""

    def __init__(
        self,
        settings: Settings,
        topic: ClickTopic,
        store: WindowStore,
        served: ServedReleases,
        index: InterestIndex,
        *,
        partitions: int,
        progress: Callable[[str], None],
        stopping: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Put it together.

        Args:
            partitions: of the clicks topic, all in all.
            progress: is told what is being done and how far it is.
            stopping: whether the worker is to stop.
            clock: seconds since 1970.
        """
        self._settings = settings
        self._topic = topic
        self._store = store
        self._served = served
        self._index = index
        self._partitions = partitions
        self._progress = progress
        self._stopping = stopping
        self._clock = clock
        # A session, one for clocks that differ, and what may keep an owner from settling in time.
        worker = settings.worker
        self._recent_s = 2 * worker.session_timeout_s + worker.step_budget_s

    def take(self, gained: Iterable[int]) -> Taken:
        """Restore and fill partitions.

        Raises:
            Outdated: some of the partitions were lost again meanwhile, or the worker is to stop.
                None of them may be served; those still assigned must be taken anew.
            LeaseRanOut: just as well.
            Misconfigured: the windows topic lost windows; says how to rebuild them.
        """
        gained = sorted(gained)
        committed, extents = self._check(gained)
        offsets, expired = self._offsets(gained, committed)
        # First withdraw what will no longer be true once we write.
        log = read_releases(self._settings.kafka)
        outdated = {(r, p) for r, p in log.filled if p in gained and r not in self._served}
        self._topic.take_back(outdated, {p: offsets[p] for _, p in outdated})
        reported = {p for _, p in log.filled}
        owned_before = [p for p in gained if p in committed or p in reported or extents[p].end > 0]
        ends = self._topic.end_offsets(owned_before)
        restored, recent = self._restore(gained)
        unfilled = {
            one.name: [p for p in gained if (one.name, p) not in log.filled] for one in self._served
        }
        first = self._served.first
        at_once = unfilled.pop(first.name)
        filled = sum(self._fill(first, partition, gained) for partition in at_once)
        self._keep(gained)
        # Commits their offsets before anything is written because of a click: whoever takes one of
        # them after us sees that it had an owner.
        self._topic.report_filled(first.name, {p: offsets[p] for p in at_once})
        self._use_when_complete(first.release)
        others = [a.release for a in log.announced if a.release not in self._served]
        before = [(r.name, p) for r in self._served for p in gained if (r.name, p) in log.filled]
        items = {one: log.items.get(one, {}) for one in before}
        recent = {p: recent[p] for p in owned_before}
        return Taken(offsets, ends, recent, restored, filled, expired, others, unfilled, items)

    def _check(self, gained: list[int]) -> tuple[dict[int, OffsetAndMetadata], dict[int, Extent]]:
        """Compare the windows topic with what the group committed.

        Returns:
            What was committed, for partitions that have a commit, and what the topic holds.
        """
        committed = self._topic.committed(gained)
        extents = read_extents(self._settings.kafka, gained)
        for partition, offset in committed.items():
            topic = self._settings.kafka.windows_topic
            check_extent(topic, partition, offset.metadata, extents[partition])
        self._topic.note_extents(extents)
        return committed, extents

    def _offsets(
        self, gained: list[int], committed: dict[int, OffsetAndMetadata]
    ) -> tuple[dict[int, int], int]:
        """Compare the clicks topic with what the group committed.

        Returns:
            Partition → next offset to read, and how many clicks are missing.
        """
        offsets = self._topic.begin_offsets(gained)
        expired = 0
        for partition, at in committed.items():
            unread = offsets[partition] - at.offset
            if unread > 0:
                log.error("clicks.expired_unread", partition=partition, clicks=unread)
                expired += unread
            offsets[partition] = max(at.offset, offsets[partition])
        return offsets, expired

    def _restore(self, gained: list[int]) -> tuple[int, dict[int, set[str]]]:
        for partition in gained:
            self._store.add_partition(partition)
        count = 0
        recent_ms = int((self._clock() - self._recent_s) * 1000)
        recent: dict[int, set[str]] = {partition: set() for partition in gained}
        with closing(self._topic.restore(gained)) as restored:
            for gathered in restored:
                try:
                    self._store.restore(gathered)
                except CorruptWindowRecord as exc:
                    raise Misconfigured(exc.advice(self._settings.kafka.windows_topic)) from exc
                for part in gathered:
                    recent[part.partition].update(part.written_since(recent_ms))
                    count += len(part)
                self._progress(f"restoring windows: {count}")
                self._keep(gained)
        return count, recent

    def _fill(self, served: Served, partition: int, gained: list[int]) -> int:
        users = self._store.users(partition)
        count = 0
        while chunk := list(islice(users, _FILL_USERS)):
            self._keep(gained)
            user_ids, packed = zip(*chunk, strict=True)
            encoded = served.encoder.encode(user_ids, packed, before=None)
            self._index.write_interests(
                served.name,
                encoded.rows,
                encoded.stale_keys,
                budget_s=self._settings.worker.step_budget_s,
                lease=self._topic.lease_left_s,
            )
            count += len(chunk)
            self._progress(f"filling release {served.name}: {count} users of one partition")
        return count

    def _keep(self, gained: list[int]) -> None:
        """Stay a member of the group; see that the partitions are still ours."""
        lost = self._topic.keep_membership() & set(gained)
        if lost:
            raise Outdated(f"partitions {sorted(lost)} were given to another worker")
        if self._stopping():
            raise Outdated("the worker is to stop")

    def _use_when_complete(self, release: Release) -> None:
        """Point readers at their first release; at another, whoever publishes it does."""
        log = read_releases(self._settings.kafka)
        if not log.is_filled(release.name, self._partitions):
            return
        in_use = self._index.release_in_use()
        if in_use is None or log.announcement(in_use.name) is None:
            slots = release.manifest.interests
            self._index.use_release(release.name, slots, lease=self._topic.lease_left_s)
