"""What is to be done about items that appear, change and are withdrawn, some at a time.

A record of the items topic is put into every served release; then whether the item is retrieved is
written to the store, and users whose windows hold it are encoded anew. All of it takes a bounded
share of the worker's time. What was done is reported by release and partition of users, so that an
owner that comes later goes on from there. It does so twice: the last write of the owner before may
land after the first time.

Whoever owns partition p of the users writes the items of partition p of the items topic; if that
has more partitions, p and every P-th after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from consumers.packed_window import click_columns
from consumers.served_releases import Served, ServedReleases, log_problems
from consumers.window_store import WindowStore
from encoder.announced_items import AnnouncedItems, Offsets
from encoder.item_index import ItemChanges
from encoder.item_record import ItemRecord
from encoder.retrieval import retrieved

_RECORDS: Final = 256  # put into the releases at once; a click waits for so many at most
_SEARCHED: Final = 4096  # windows searched at once
_USERS: Final = 128  # encoded at once
_REPORT_EVERY_S: Final = 10.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ItemWork:
    """What to write now; all of it may be empty.

    Attributes:
        items: release → changes of what is retrieved.
        partition: whose users these are.
        user_ids: to be encoded anew for every release, whatever rows of theirs are in the store.
        report: (release, partition) → offsets up to which all is written once nothing is in flight.
    """

    items: dict[str, ItemChanges] = field(default_factory=dict)
    partition: int = 0
    user_ids: list[str] = field(default_factory=list)
    report: Mapping[tuple[str, int], Offsets] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How much there is to write."""
        return len(self.user_ids) + sum(map(len, self.items.values()))


@dataclass(frozen=True, slots=True)
class _Began:
    """From where a release's items were written, and users encoded anew, at a takeover.

    Attributes:
        encoded: None where users were encoded for the first time, or are yet to be.
    """

    written: Offsets
    encoded: Offsets | None


@dataclass(slots=True)
class _Search:
    """Users of a partition whose windows hold one of some items."""

    partition: int
    codes: NDArray[np.uint32]
    left: deque[str]
    found: deque[str] = field(default_factory=deque)


class ItemUpdates:
    """What is left to be done of it. For the thread of the loop."""

    def __init__(
        self,
        items: AnnouncedItems,
        served: ServedReleases,
        store: WindowStore,
        *,
        partitions: int,
        share: float,
        settle_s: float,
    ) -> None:
        """Nothing to do yet; `begin_release` is to be called for what is served.

        Args:
            items: as they are read, by another thread.
            served: the releases to put them into.
            store: the windows that are owned.
            partitions: of the users, all in all.
            share: of the time that may go into it.
            settle_s: after a takeover nothing of the owner before lands any more.
        """
        self._items = items
        self._served = served
        self._store = store
        self._partitions = partitions
        self._share = share
        self._settle_s = settle_s
        self._settling: dict[int, tuple[float, dict[str, _Began]]] = {}  # when, by partition
        self._queue: deque[ItemRecord] = deque()
        _, self._taken = items.take()
        self._applied = dict(self._taken)
        self._to_write: dict[str, dict[str, ItemRecord]] = {}
        self._withdrawn: dict[str, set[str]] = {}  # items that were, or may have been
        self._codes: dict[int, set[int]] = {}  # by partition: windows that hold them are to do
        self._search: _Search | None = None
        self._unlogged = 0
        self._lost = False  # an item of those to do is no longer known
        self._unreported: dict[int, set[int]] = {}
        self._written_from: dict[tuple[str, int], Offsets] = {}  # (release, partition)
        self._reported: dict[tuple[str, int], Offsets] = {}
        self._due_at = self._began_at = self._report_at = 0.0

    @property
    def unsettled(self) -> bool:
        """Whether rows in the store may be of items that are no longer known."""
        return self._lost

    @property
    def busy(self) -> bool:
        """Whether anything is left to be done, but for a report."""
        todo = self._queue or self._codes or self._search or any(self._to_write.values())
        return bool(todo)

    def owes(self, release: str) -> bool:
        """Whether there is anything left to write of what is retrieved in a release."""
        return bool(self._queue or self._to_write.get(release))

    def begin_release(self, served: Served) -> None:
        """A release is served from now on; it has what was read when it was loaded."""
        self._take()
        self._withdrawn[served.name] = set(served.withdrawn)
        for record in self._items.since(served.items_at):
            self._put(served, record)
        for partition in self._store.partitions:
            self._written_from[served.name, partition] = served.items_from
            self._write_since(served.name, partition)

    def begin_partitions(
        self, partitions: Iterable[int], reports: Mapping[tuple[str, int], Offsets], now: float
    ) -> dict[tuple[str, int], Offsets]:
        """Partitions were taken over, and are served from now on.

        Args:
            partitions: which.
            reports: of those that a release was filled for before: what was reported of items,
                empty where nothing was. Others were filled with what is known here, or will be.
            now: as `next` is told.

        Returns:
            Reports that are ahead of what is known here, as they have to be now.
        """
        self._take()
        behind: dict[tuple[str, int], Offsets] = {}
        for partition in partitions:
            began: dict[str, _Began] = {}
            self._settling[partition] = now + self._settle_s, began
            for served in self._served:
                report = served.name, partition
                self._written_from[report] = reports.get(report) or served.items_from
                self._reported.pop(report, None)
                self._write_since(served.name, partition)
                began[served.name] = _Began(self._written_from[report], reports.get(report))
                if report not in reports:
                    continue
                start = reports[report]
                lower = {q: min(at, self._applied.get(q, 0)) for q, at in start.items()}
                if lower != start:
                    behind[report] = lower
                self._encode_since(served, partition, lower)
        return behind

    def drop_partition(self, partition: int) -> None:
        """The partition was lost."""
        self._codes.pop(partition, None)
        self._unreported.pop(partition, None)
        self._settling.pop(partition, None)
        if self._search is not None and self._search.partition == partition:
            self._search = None
        for held in (self._written_from, self._reported):
            for report in [one for one in held if one[1] == partition]:
                del held[report]

    def drop_release(self, release: str) -> None:
        """The release is no longer served."""
        self._to_write.pop(release, None)
        self._withdrawn.pop(release, None)
        for held in (self._written_from, self._reported):
            for report in [one for one in held if one[0] == release]:
                del held[report]

    def begin_again(self) -> None:
        """What was to be written since the last report may not have been."""
        self._search = None
        for partition, codes in self._unreported.items():
            self._codes.setdefault(partition, set()).update(codes)
        self._lost = bool(self._codes)
        for release, partition in self._written_from:
            self._write_since(release, partition)

    def wait_s(self, now: float) -> float | None:
        """Seconds until there is something to do; None where nothing is known of."""
        due_at = [self._due_at] if self.busy else []
        due_at += [max(at, self._due_at) for at, _ in self._settling.values()]
        return max(0.0, min(due_at) - now) if due_at else None

    def next(self, now: float) -> ItemWork | None:
        """What to do now, if anything is due.

        Args:
            now: in seconds, of a clock that does not go back.
        """
        if now < self._due_at:
            return None
        self._began_at = now
        self._settle(now)
        self._take()
        if self._queue or any(self._to_write.values()):
            self._apply_some()
            return ItemWork(items=self._some_to_write())
        if self._search is None and self._codes:
            partition, codes = self._codes.popitem()
            users = deque(user_id for user_id, _ in self._store.users(partition))
            self._unreported.setdefault(partition, set()).update(codes)
            self._search = _Search(partition, np.array(sorted(codes), np.uint32), users)
        if self._search is not None:
            return self._go_on(self._search)
        self._lost = False
        return self._report(now)

    def spent(self, now: float) -> None:
        """The work that `next` began is done; rest until its share of the time is kept."""
        self._due_at = now + (now - self._began_at) * (1 / self._share - 1)

    def reported(self, report: Mapping[tuple[str, int], Offsets]) -> None:
        """A report was written; what lies before it need not be done again."""
        self._reported.update(report)
        self._written_from.update(report)
        for partition in self._unreported.keys() - self._settling:
            del self._unreported[partition]

    # Inside --------------------------------------------------------------------------------

    def _take(self) -> None:
        fresh, self._taken = self._items.take()
        self._queue.extend(fresh)
        if not self._queue:
            self._applied = dict(self._taken)

    def _settle(self, now: float) -> None:
        """Do what may have been undone once more, where that is due."""
        for partition, (due_at, began) in list(self._settling.items()):
            if due_at > now:
                continue
            del self._settling[partition]
            for served in self._served:
                # One that is served only since then is written from its beginning, as it was.
                start = began.get(served.name, _Began(served.items_from, None))
                self._written_from[served.name, partition] = start.written
                self._write_since(served.name, partition)
                if start.encoded is not None:
                    self._encode_since(served, partition, start.encoded)

    def _apply_some(self) -> None:
        some = [self._queue.popleft() for _ in range(min(_RECORDS, len(self._queue)))]
        for record in some:
            self._applied[record.partition] = record.offset + 1
            for served in self._served:
                self._put(served, record)
                if self._owns(record.partition):
                    self._note_write(served.name, record)
        self._unlogged += len(some)
        if not self._queue:
            self._applied = dict(self._taken)
            if self._unlogged:
                log.info("items.applied", items=self._unlogged, announced=len(self._items))
                self._unlogged = 0

    def _put(self, served: Served, record: ItemRecord) -> None:
        if record.withdrawn:
            self._withdrawn[served.name].add(record.item_id)
        code, problems = served.encoder.put_item(record.item_id, record.fields())
        if problems:
            log_problems(served.name, record, problems)
        if code is not None:
            self._lost = self._lost or not served.encoder.further.row(record.item_id)
            for partition in self._store.partitions:
                self._codes.setdefault(partition, set()).add(code)

    def _encode_since(self, served: Served, partition: int, offsets: Offsets) -> None:
        """Have users encoded anew whose windows hold what changed since."""
        codes = self._codes.setdefault(partition, set())
        for record in self._items.since(offsets):
            if record.item_id not in served.release.row_of:
                code = self._store.codes.find(record.item_id)
                if code is not None:
                    codes.add(code)
                    self._lost = True
        if not codes:
            del self._codes[partition]

    def _owns(self, partition: int) -> bool:
        return partition % self._partitions in self._store.partitions

    def _note_write(self, release: str, record: ItemRecord) -> None:
        to_write = self._to_write.setdefault(release, {})
        to_write.pop(record.item_id, None)  # to the end: readers count on the order
        to_write[record.item_id] = record

    def _write_since(self, release: str, partition: int) -> None:
        for record in self._items.since(self._written_from[release, partition]):
            ours = record.partition % self._partitions == partition
            if ours and record.offset < self._taken.get(record.partition, 0):
                # Of an earlier record, which nobody need have seen but who wrote it and died.
                self._withdrawn[release].add(record.item_id)
                self._note_write(release, record)

    def _some_to_write(self) -> dict[str, ItemChanges]:
        found: dict[str, ItemChanges] = {}
        for served in self._served:
            to_write = self._to_write.get(served.name, {})
            some = list(islice(to_write.values(), _RECORDS))
            if any(one.offset >= self._applied.get(one.partition, 0) for one in some):
                continue  # what the release knows of it is not what the record says yet
            for record in some:
                del to_write[record.item_id]
            ours = [one for one in some if self._owns(one.partition)]
            changes = retrieved(served.encoder.further, ours, self._withdrawn[served.name])
            if len(changes):
                found[served.name] = changes
        return found

    def _go_on(self, search: _Search) -> ItemWork:
        if not search.found and search.left:
            some = [search.left.popleft() for _ in range(min(_SEARCHED, len(search.left)))]
            packed = [self._store.packed(search.partition, user_id) for user_id in some]
            clicks, counts = click_columns(packed)
            ends = np.cumsum(counts)
            hits = np.concatenate([[0], np.cumsum(np.isin(clicks["code"], search.codes))])
            holds = hits[ends] > hits[ends - counts]
            search.found.extend(some[place] for place in np.flatnonzero(holds).tolist())
        users = [search.found.popleft() for _ in range(min(_USERS, len(search.found)))]
        if not search.found and not search.left:
            self._search = None
        return ItemWork(partition=search.partition, user_ids=users)

    def _report(self, now: float) -> ItemWork | None:
        if now < self._report_at:
            return None
        self._report_at = now + _REPORT_EVERY_S
        applied = dict(self._applied)
        # A successor must settle, too, what we have not: it goes on from our predecessor's report.
        partitions = self._store.partitions - self._settling.keys()
        reports = {(one.name, p) for one in self._served for p in partitions}
        due = {one: applied for one in reports if self._reported.get(one, {}) != applied}
        return ItemWork(report=due) if due and any(applied.values()) else None
