"""The update loop: clicks in, interests out. The order of its steps is the delivery guarantee.

A crash at any point repeats steps and skips none, and every step may be repeated: windows do not
change by replay, rows are overwritten with the same rows, and windows, dead letters and offsets
are committed together.

Batches overlap: some are committed, together, while the next is written and the one after that is
merged and encoded. Writes stay in order, and so do commits; a batch whose write or commit fails
takes all that follow it along (docs/decisions/0009-overlap.md).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import structlog

from consumers.accounts import Accounts
from consumers.at_once import at_once
from consumers.backfill import Backfill, Chunk
from consumers.batch import Decision, decide, joined
from consumers.batch_size import BatchSize
from consumers.click_topic import AssignmentChange, ClickTopic
from consumers.encoding import Encoded
from consumers.health import Health
from consumers.item_updates import ItemUpdates, ItemWork
from consumers.memory import give_back
from consumers.metrics import WorkerMetrics
from consumers.packed_window import newest_ms, was_erased, without_old_erasure
from consumers.pipeline import Pipeline
from consumers.rejected_share import RejectedShare
from consumers.release_watch import ReleaseWatch
from consumers.served_releases import ServedReleases
from consumers.settling import Settling
from consumers.takeover import Takeover
from consumers.transactions import Outdated
from consumers.unsettled import Unsettled
from consumers.window_store import WindowStore
from consumers.window_wire import to_wires
from encoder.announced_items import Offsets
from encoder.errors import LeaseRanOut, Misconfigured
from encoder.interest_index import InterestIndex
from encoder.item_index import ItemChanges
from encoder.records import Record
from encoder.settings import Settings

Step = Literal["polled", "merged", "encoded", "written", "committed"]

_BATCHES_AHEAD: Final = 2  # that many of the largest may be written, but not committed
_OVERLAPPED_POLL_S: Final = 0.05
_EXPIRE_EVERY_S: Final = 600.0
_ACCOUNT_EVERY_S: Final = 0.5
_BACKFILL_USERS: Final = 64  # a click waits for so many at most

log = structlog.get_logger()


@dataclass(slots=True)
class _Batch:
    """A batch that is merged and encoded, on its way to being committed.

    Attributes:
        encoded: what to write, by release.
        items: changes of what is retrieved, by release.
        before: the windows that its merging replaced, by partition and user.
        share: the share of rejected records before it.
        member: the membership that its records were polled with.
        written_at: when its rows were acknowledged, in seconds since 1970.
        slowest_s: how long the slowest of its steps took so far.
        chunk_s: of a release that is being filled: how long encoding and writing it took.
        settled: users whose rows nobody else overwrites once these are written, by partition.
    """

    records: list[Record]
    decision: Decision
    encoded: dict[str, Encoded]
    before: dict[int, dict[str, bytes]]
    share: RejectedShare
    member: Any
    written_at: float = 0.0
    slowest_s: float = 0.0
    items: dict[str, ItemChanges] = field(default_factory=dict)
    chunk_s: float = 0.0
    settled: Mapping[int, Collection[str]] = field(default_factory=dict)


class UpdateLoop:
    """One worker's loop over its partitions."""

    def __init__(
        self,
        settings: Settings,
        topic: ClickTopic,
        store: WindowStore,
        served: ServedReleases,
        index: InterestIndex,
        takeover: Takeover,
        watch: ReleaseWatch,
        items: ItemUpdates,
        *,
        metrics: WorkerMetrics,
        health: Health,
        clock: Callable[[], float] = time.time,
        after_step: Callable[[Step], None] = lambda step: None,
    ) -> None:
        """Put a loop together; nothing happens before `turn`.

        Args:
            served: whose collections are written; it is the loop that changes it.
            watch: says which releases to serve, too, and which no longer.
            items: says what is to be done about items that appear and change.
            clock: seconds since 1970.
            after_step: called when a step is done; fault tests crash in it.
        """
        self._settings = settings
        self._topic = topic
        self._store = store
        self._served = served
        self._watch = watch
        self._items = items
        for one in served:
            items.begin_release(one)
        self._index = index
        self._takeover = takeover
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._after_step = after_step
        self._gained: set[int] = set()  # assigned, but not yet taken over
        self._ahead = _BATCHES_AHEAD * settings.worker.max_batch_clicks  # in records
        self._unsettled = Unsettled(self._ahead)
        self._batch_size = BatchSize(
            settings.worker.max_batch_clicks, settings.worker.batch_target_s
        )
        self._settling = Settling(
            after_s=settings.worker.session_timeout_s,
            within_s=settings.worker.step_budget_s / 2,
            records=self._ahead,
        )
        self._other_releases: list[str] = []
        self._rejected_share = RejectedShare(
            settings.kafka.clicks_topic, settings.worker.max_rejected_share
        )
        self._pipeline = Pipeline(
            self._write_batch,
            self._commit_batches,
            joins=lambda before, after: bool(before.member == after.member),
            rest_s=settings.worker.commit_every_s,
            name="batches",
        )
        self._backfill = Backfill(
            lambda partition: [user_id for user_id, _ in store.users(partition)],
            share=settings.worker.backfill_share,
            chunk=_BACKFILL_USERS,
        )
        self._withdrawn: set[tuple[str, int]] = set()  # reports to be taken back
        self._chunk: _Batch | None = None  # of a release that is being filled, on its way
        self._accounts = Accounts(metrics, clock())
        self._expire_at = self._account_at = clock()
        health.waiting_for("assignment of partitions")
        self._show_items()

    def turn(self, timeout_s: float) -> int:
        """Take one batch through its first steps, waiting at most `timeout_s` for clicks.

        The steps that follow happen while further batches are taken.

        Returns:
            How many records the batch had.

        Raises:
            Unavailable: a step's budget is spent. Nothing of its batch is committed; the process
                must end, and the next one repeats the batch.
            Misconfigured: too many of the newest records were rejected. Nothing of the batch is
                written or committed; the process must end.
        """
        # 1. Poll. A rebalance must not overtake what is in flight.
        if self._topic.rejoining:
            self.finish()
        in_flight = self._pipeline.in_flight > 0
        wait_s = _OVERLAPPED_POLL_S if in_flight else timeout_s
        for work in (self._settling, self._backfill, self._items):
            if (due_s := work.wait_s(time.monotonic())) is not None:
                wait_s = min(wait_s, due_s)
        polled, change = self._topic.poll(wait_s, self._batch_size.records)
        self._health.progress()
        if change.gained or change.lost or self._gained:
            self._pipeline.wait()
            if not self._collect(polled, change.lost):
                polled = []
        if change.gained or self._gained:
            # A takeover polls, too: by its end some of what was polled may no longer be ours.
            self._topic.hold_back(polled)
            self._apply(change)
            return 0
        self._apply(change)
        records = self._held(polled)
        if not records:
            self._collect()
            self._around(self._clock())
            return 0
        self._after_step("polled")

        # 2. Parse, setting rejected records aside. 3. Merge clicks into windows; users whose
        # window did not change drop out.
        with self._metrics.step.labels("merge").time():
            decision = decide(
                records,
                self._store,
                window_length=self._settings.window_length,
                max_future_ms=int(self._settings.worker.max_future_s * 1000),
            )
        try:
            share_after = self._rejected_share.after(records, decision.rejected)
        except Misconfigured:
            self.finish()
            raise
        self._after_step("merged")

        # 4. Encode the changed users in one call.
        encoded_at = time.monotonic()
        settled = self._settled_by(decision, encoded_at)
        with self._metrics.step.labels("encode").time():
            encoded = self._encode(decision, records, settled)
        self._after_step("encoded")

        # 5. Write their rows. 6. Commit windows, rejected records and offsets together. Both while
        # the next batch is polled, merged into the windows as they will be then, and encoded.
        self._pipeline.wait_for_room(len(records), self._ahead)
        if not self._collect(records):
            self._unsettled.abandon(decision.next_offsets)  # they will be applied again
            return len(records)
        before = {
            partition: {user_id: self._store.packed(partition, user_id) for user_id in of_partition}
            for partition, of_partition in decision.windows.items()
        }
        share, member = self._rejected_share, self._topic.membership
        batch = _Batch(records, decision, encoded, before, share, member, settled=settled)
        for partition, of_partition in decision.windows.items():
            self._store.put(partition, of_partition)
        counts = Counter(record.partition for record in records)
        self._settling.add(decision.windows, counts, encoded_at)
        self._rejected_share = share_after
        self._pipeline.submit(batch, len(records))
        self._around(self._clock())
        return len(records)

    def finish(self) -> bool:
        """Wait until nothing is in flight; tells whether all of it was committed.

        Raises:
            Unavailable: a step's budget is spent. The process must end.
        """
        self._pipeline.wait()
        return self._collect()

    def close(self, timeout_s: float) -> None:
        """Let the threads end. What is in flight is not finished.

        Args:
            timeout_s: how long to wait for a write and a commit that are under way. Whoever leaves
                the group before they end has its successor wait for rows to be written again.
        """
        self._pipeline.close(timeout_s)

    # In flight -----------------------------------------------------------------------------

    def _write_batch(self, batch: _Batch) -> None:
        began_at = time.monotonic()
        with self._timed("write", [batch]):
            lease = self._topic.lease_of(batch.member)
            self._write(batch.encoded, batch.decision.erased_users, lease)
            self._write_items(batch.items, lease)
        batch.chunk_s += time.monotonic() - began_at
        batch.written_at = self._clock()
        self._after_step("written")

    def _commit_batches(self, batches: Sequence[_Batch]) -> None:
        decision = joined([batch.decision for batch in batches])
        if not decision.next_offsets:  # a release was filled a little more
            return
        with self._timed("commit", batches):
            self._commit(decision, batches[0].member)
        self._after_step("committed")

    @contextmanager
    def _timed(self, step: str, batches: Sequence[_Batch]) -> Iterator[None]:
        began_at = time.monotonic()
        yield
        seconds = time.monotonic() - began_at
        self._metrics.step.labels(step).observe(seconds)
        records = max(1, sum(len(batch.records) for batch in batches))
        for batch in batches:
            batch.slowest_s = max(batch.slowest_s, seconds * len(batch.records) / records)

    def _collect(self, polled: Sequence[Record] = (), lost: Collection[int] = ()) -> bool:
        """Account for what was committed; after a failure, go back to before it.

        Args:
            polled: records that are polled again in that case.
            lost: partitions that went away. Where Kafka gave them back, it has us poll from what
                was committed, which may be beyond what we had in flight.

        Returns:
            Whether there was no failure.

        Raises:
            Whatever failed, unless the group or the lease has moved on.
        """
        failure = self._pipeline.failure
        for batch in self._pipeline.take_finished():
            for partition in self._settling.done(batch.settled):
                log.info("partition.settled", partition=partition)
            self._reported(batch.decision.reports)
            self._account(batch)
        if failure is None:
            return True
        if not isinstance(failure, Outdated | LeaseRanOut):
            raise failure
        batches = self._pipeline.take_unfinished()
        self._chunk = None
        self._backfill.begin_again()
        self._items.begin_again()
        for batch in reversed(batches):
            for partition, windows in batch.before.items():
                if partition in self._store.partitions:
                    self._store.put(partition, windows)
            self._rejected_share = batch.share
            self._unsettled.abandon(batch.decision.next_offsets)
            self._settling.again(batch.decision.next_offsets)
            reports = batch.decision.reports.items()
            self._withdrawn |= {report for report, filled in reports if not filled}
        records = [record for batch in batches for record in batch.records]
        again = [*(record for record in records if record.partition not in lost), *polled]
        self._topic.rewind(again)
        log.warning("batch.abandoned", records=len(records), reason=repr(failure))
        return False

    # Steps ---------------------------------------------------------------------------------

    def _apply(self, change: AssignmentChange) -> None:
        for partition in change.lost:
            self._store.drop_partition(partition)
            self._unsettled.drop(partition)
            self._settling.drop(partition)
            self._backfill.drop_partition(partition)
            self._items.drop_partition(partition)
            with suppress(KeyError):  # no lag was ever reported
                self._metrics.lag.remove(str(partition))
            self._metrics.unfilled.set(self._backfill.partitions_left)
        self._gained = (self._gained - change.lost) | change.gained
        if self._gained:
            started = self._expire_at = self._clock()
            self._health.waiting_for(f"taking {len(self._gained)} partitions over")
            self._metrics.ready.set(0)
            try:
                taken = self._takeover.take(self._gained)
                behind = self._items.begin_partitions(self._gained, taken.items, time.monotonic())
                self._topic.report_items(behind, {p: taken.offsets[p] for _, p in behind})
            except (Outdated, LeaseRanOut) as exc:
                for partition in self._gained:
                    self._store.drop_partition(partition)
                    self._items.drop_partition(partition)
                log.warning("takeover.abandoned", reason=repr(exc))
                return
            give_back()
            self._unsettled.take(taken.ends)
            self._settling.take(taken.recent, time.monotonic())
            self._other_releases = taken.other_releases
            settled_at = time.monotonic() + self._settings.worker.session_timeout_s
            for release, partitions in taken.unfilled.items():
                self._backfill.add(release, partitions, not_before=settled_at)
            self._metrics.unfilled.set(self._backfill.partitions_left)
            self._metrics.restored.inc(taken.restored)
            self._metrics.backfilled.inc(taken.filled)
            self._metrics.expired.inc(taken.expired)
            log.info(
                "partitions.taken",
                partitions=len(self._gained),
                windows=taken.restored,
                filled_users=taken.filled,
                seconds=round(self._clock() - started, 3),
            )
            self._gained = set()
        if change.gained or change.lost:
            ready = bool(self._store.partitions)
            self._health.waiting_for("" if ready else "assignment of partitions")
            self._metrics.ready.set(int(ready))
            self._metrics.partitions.set(len(self._store.partitions))
            self._metrics.windows.set(len(self._store))

    def _held(self, polled: list[Record]) -> list[Record]:
        """The records of partitions that are taken over; others are polled again later."""
        held = self._store.partitions
        if held.issuperset(record.partition for record in polled):
            return polled
        self._topic.rewind(record for record in polled if record.partition not in held)
        return [record for record in polled if record.partition in held]

    def _settled_by(self, decision: Decision, now: float) -> dict[int, set[str]]:
        """Who need not be written again for a predecessor's sake once this batch is written.

        Those who were erased are left out: they may have rows in other releases, too.
        """
        return {
            partition: {u for u in found if not was_erased(decision.windows[partition][u])}
            for partition, found in self._settling.among(decision.windows, now).items()
        }

    def _encode(
        self, decision: Decision, records: list[Record], settled_users: Mapping[int, set[str]]
    ) -> dict[str, Encoded]:
        # A predecessor may have written rows for clicks that it did not commit. Until we are past
        # those clicks, the rows in the store of a user whom we have not written yet may be of a
        # window that we know nothing of.
        unsettled = self._unsettled.apply(records, decision.windows)
        for partition, users in settled_users.items():
            unsettled.update((partition, user_id) for user_id in users)
        settled = not self._items.unsettled
        changed: dict[str, tuple[bytes, bytes | None]] = {}  # user → window, window before
        for partition, windows in decision.windows.items():
            for user_id, window in windows.items():
                if user_id in changed:
                    settled = False  # which of the two windows the rows are of is anybody's guess
                    log.warning("user.on_two_partitions", partition=partition)
                    if newest_ms(window) < newest_ms(changed[user_id][0]):
                        continue
                known = (partition, user_id) not in unsettled
                before = self._store.packed(partition, user_id) if known else None
                changed[user_id] = (window, before)
        packed = [window for window, _ in changed.values()]
        befores = [before for _, before in changed.values()] if settled else None
        return self._served.encode(list(changed), packed, befores)

    def _write(
        self, encoded: dict[str, Encoded], erased_users: Iterable[str], lease: Callable[[], float]
    ) -> None:
        """Write rows, and delete those that other releases have of erased users, in one budget."""
        ends_at = time.monotonic() + self._settings.worker.step_budget_s

        def write(release: str, one: Encoded) -> None:
            budget_s = ends_at - time.monotonic()
            self._index.write_interests(
                release, one.rows, one.stale_keys, budget_s=budget_s, lease=lease
            )

        at_once([partial(write, *each) for each in encoded.items()])
        if erased := sorted(erased_users):
            budget_s = ends_at - time.monotonic()
            self._index.forget(erased, self._other_releases, budget_s=budget_s, lease=lease)

    def _write_items(self, items: dict[str, ItemChanges], lease: Callable[[], float]) -> None:
        ends_at = time.monotonic() + self._settings.worker.step_budget_s
        for release, changes in items.items():
            budget_s = ends_at - time.monotonic()
            self._index.items.change(release, changes, budget_s=budget_s, lease=lease)

    def _commit(self, decision: Decision, member: Any) -> None:
        windows = {
            partition: zip(of_partition, self._wires(of_partition), strict=True)
            for partition, of_partition in decision.windows.items()
        }
        self._topic.commit(
            windows, decision.rejected, decision.next_offsets, member, decision.reports
        )

    def _wires(self, windows: dict[str, bytes]) -> list[bytes | None]:
        return to_wires(list(windows.values()), self._store.codes)

    # Around the steps ----------------------------------------------------------------------

    def _around(self, now: float) -> None:
        """What is due between batches: one thing at a time, as each may take a step's budget."""
        self._follow_releases()
        if self._withdrawn:
            self._let_go()
        if self._chunk is not None and self._chunk.written_at:
            self._backfill.spent(self._chunk.chunk_s, time.monotonic())
            self._chunk = None
        if piece := self._settling.next(time.monotonic(), most=self._batch_size.records):
            self._write_again(piece)
        elif work := self._items.next(time.monotonic()):
            self._update_items(work)
        elif chunk := self._backfill.next(time.monotonic()):
            self._fill(chunk)
        elif now >= self._expire_at and self.finish():
            self._expire_at = now + _EXPIRE_EVERY_S
            self._expire_erasures()
        if now >= self._account_at:
            self._account_at = now + _ACCOUNT_EVERY_S
            self._accounts.log_if_due(now, self._report_lag())

    def _write_again(self, piece: Mapping[int, list[str]]) -> None:
        """Write rows over what a predecessor's last write may have left, also for the erased."""
        ((partition, user_ids),) = piece.items()
        packed = [self._store.packed(partition, user_id) for user_id in user_ids]
        encoded = self._served.encode(user_ids, packed, before=None)
        erased = {u for u, window in zip(user_ids, packed, strict=True) if was_erased(window)}
        self._send(len(user_ids), encoded, Decision(erased_users=erased), settled=piece)

    def _send(
        self, rows: int, encoded: dict[str, Encoded], decision: Decision, **more: Any
    ) -> _Batch:
        """Write what no record asked for, behind the batches in flight whose windows it is of."""
        self._pipeline.wait_for_room(rows, self._ahead)
        share, member = self._rejected_share, self._topic.membership
        batch = _Batch([], decision, encoded, {}, share, member, **more)
        self._pipeline.submit(batch, rows)
        return batch

    def _follow_releases(self) -> None:
        """Serve what was announced and is loaded; let go of what was withdrawn."""
        events = self._watch.take()
        for event in events:
            if not isinstance(event, str):
                self._served.add(event)
                self._backfill.add(event.name, self._store.partitions)
                self._items.begin_release(event)
                self._other_releases = [r for r in self._other_releases if r != event.name]
            elif self._served.remove(event):
                self._backfill.drop_release(event)
                self._items.drop_release(event)
                self._other_releases.append(event)
                self._withdrawn |= {(event, partition) for partition in self._store.partitions}
        if events:
            self._show_releases()

    def _let_go(self) -> None:
        """Take back reports of releases that were withdrawn: nobody keeps them up to date.

        Behind what is on its way to the releases, which may be dropped then.
        """
        held = {partition for _, partition in self._withdrawn} & self._store.partitions
        offsets = {p: at for p in held if (at := self._topic.position(p)) is not None}
        reports = {one: False for one in self._withdrawn if one[1] in offsets}
        self._withdrawn = {one for one in self._withdrawn if one[1] in held} - reports.keys()
        if reports:
            self._send(0, {}, Decision(next_offsets=offsets, reports=reports))

    def _reported(self, reports: Mapping[tuple[str, int], bool]) -> None:
        for (release, partition), filled in reports.items():
            if filled:
                self._backfill.done(release, partition)
                log.info("release.filled", release=release, partition=partition)
        if reports:
            self._metrics.unfilled.set(self._backfill.partitions_left)

    def _fill(self, chunk: Chunk) -> None:
        """Encode some users for a release that joins."""
        began_at = time.monotonic()
        sent = bool(chunk.user_ids)
        served = self._served.get(chunk.release)
        if chunk.user_ids:
            packed = [self._store.packed(chunk.partition, user_id) for user_id in chunk.user_ids]
            encoded = {chunk.release: served.encoder.encode(chunk.user_ids, packed, before=None)}
            encoded_s = time.monotonic() - began_at
            self._chunk = self._send(len(chunk.user_ids), encoded, Decision(), chunk_s=encoded_s)
            self._metrics.backfilled.inc(len(chunk.user_ids))
        elif self._items.owes(chunk.release):
            pass  # readers must not be pointed at it before its items are there
        elif (at := self._topic.position(chunk.partition)) is not None:
            # What was polled before is what the batches in flight commit before this.
            reports = {(chunk.release, chunk.partition): True}
            self._send(0, {}, Decision(next_offsets={chunk.partition: at}, reports=reports))
            sent = True
        now = time.monotonic()
        self._backfill.spent(now - began_at, now)
        if sent:
            self._backfill.sent()

    def _update_items(self, work: ItemWork) -> None:
        """Write what became of items, and users whose windows hold them."""
        if work.rows:
            packed = [self._store.packed(work.partition, user_id) for user_id in work.user_ids]
            encoded = self._served.encode(work.user_ids, packed, before=None) if packed else {}
            self._send(work.rows, encoded, Decision(), items=work.items)
        elif work.report and self.finish():
            self._report_items(work.report)
        self._items.spent(time.monotonic())
        self._show_items()

    def _report_items(self, report: Mapping[tuple[str, int], Offsets]) -> None:
        # Between batches the position is what is committed; see `_expire_erasures`.
        positions = {p: self._topic.position(p) for _, p in report}
        offsets = {p: at for p, at in positions.items() if at is not None}
        seen = {one: at for one, at in report.items() if one[1] in offsets}
        with suppress(Outdated):  # it is due again, if the partition stays ours
            self._topic.report_items(seen, offsets)
            self._items.reported(seen)

    def _show_items(self) -> None:
        self._metrics.items_waiting.set(self._items.busy)
        for served in self._served:
            self._metrics.items_known.labels(served.name).set(len(served.encoder.further))

    def _show_releases(self) -> None:
        self._metrics.items_known.clear()
        self._show_items()
        self._metrics.release.clear()
        for served in self._served:
            self._metrics.release.labels(served.name).set(1)
        self._metrics.unfilled.set(self._backfill.partitions_left)

    def _expire_erasures(self) -> None:
        """Drop erasure times that no click or dead letter still kept can be older than."""
        kept_s = self._settings.worker.erasure_retention_s
        before_ms = int((self._clock() - kept_s) * 1000)
        decision = Decision()
        for partition in self._store.partitions:
            # Between batches the position is what is committed. Committing it again is what lets
            # the group's generation fence us.
            offset = self._topic.position(partition)
            changed = {
                user_id: after
                for user_id, packed in self._store.users(partition)
                if (after := without_old_erasure(packed, before_ms=before_ms)) is not packed
            }
            if changed and offset is not None:
                decision.windows[partition] = changed
                decision.next_offsets[partition] = offset
        if decision.windows:
            try:
                self._commit(decision, self._topic.membership)
            except Outdated:
                return  # the next owner does it
            for partition, changed in decision.windows.items():
                self._store.put(partition, changed)
            log.info("erasures.expired", users=decision.users)

    def _account(self, batch: _Batch) -> None:
        self._accounts.written(batch.encoded.values())
        if batch.records:
            late_s = self._accounts.committed(batch.records, batch.decision, batch.written_at)
            self._batch_size.after(len(batch.records), batch.slowest_s, late_s)
            self._metrics.windows.set(len(self._store))

    def _report_lag(self) -> int:
        total = 0
        for partition in self._store.partitions:
            end, position = self._topic.highwater(partition), self._topic.position(partition)
            if end is not None and position is not None:
                self._metrics.lag.labels(str(partition)).set(max(0, end - position))
                total += max(0, end - position)
        return total
