"""The update loop: clicks in, interests out. The order of its steps is the delivery guarantee.

A crash at any point repeats steps and skips none, and every step may be repeated: windows do not
change by replay, rows are overwritten with the same rows, and windows, dead letters and offsets
are committed together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, Literal

import numpy as np
import structlog

from consumers.batch import Decision, Record, decide
from consumers.click_topic import AssignmentChange, ClickTopic, Outdated
from consumers.encoding import Encoded, WindowEncoder
from consumers.health import Health
from consumers.memory import give_back
from consumers.metrics import WorkerMetrics
from consumers.packed_window import newest_ms, was_erased, without_old_erasure
from consumers.rejected_share import RejectedShare
from consumers.settling import Settling
from consumers.takeover import Takeover
from consumers.window_store import WindowStore
from consumers.window_wire import to_wires
from encoder.errors import LeaseRanOut
from encoder.interest_index import InterestIndex
from encoder.settings import Settings

Step = Literal["polled", "merged", "encoded", "written", "committed"]

_SUMMARY_EVERY_S: Final = 10.0
_EXPIRE_EVERY_S: Final = 600.0

log = structlog.get_logger()


class UpdateLoop:
    """One worker's loop over its partitions."""

    def __init__(
        self,
        settings: Settings,
        topic: ClickTopic,
        store: WindowStore,
        encoder: WindowEncoder,
        index: InterestIndex,
        takeover: Takeover,
        *,
        release: str,
        metrics: WorkerMetrics,
        health: Health,
        clock: Callable[[], float] = time.time,
        after_step: Callable[[Step], None] = lambda step: None,
    ) -> None:
        """Put a loop together; nothing happens before `turn`.

        Args:
            release: whose collection is written.
            clock: seconds since 1970.
            after_step: called when a step is done; fault tests crash in it.
        """
        self._settings = settings
        self._topic = topic
        self._store = store
        self._encoder = encoder
        self._index = index
        self._takeover = takeover
        self._release = release
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._after_step = after_step
        self._gained: set[int] = set()  # assigned, but not yet taken over
        self._unsettled_until: dict[int, int] = {}
        self._settling = Settling(
            after_s=settings.worker.session_timeout_s, records=settings.worker.max_batch_clicks
        )
        self._other_releases: list[str] = []
        self._rejected_share = RejectedShare(
            settings.kafka.clicks_topic, settings.worker.max_rejected_share
        )
        self._summary = _Summary(clock())
        self._expire_at = clock()
        health.waiting_for("assignment of partitions")

    def turn(self, timeout_s: float) -> int:
        """Take one batch through all steps, waiting at most `timeout_s` for clicks.

        Returns:
            How many records the batch had.

        Raises:
            Unavailable: a step's budget is spent. Nothing of the batch is committed; the process
                must end, and the next one repeats the batch.
            Misconfigured: too many of the newest records were rejected. Nothing of the batch is
                written or committed; the process must end.
        """
        # 1. Poll.
        polled, change = self._topic.poll(timeout_s)
        self._health.progress()
        if change.gained or self._gained:
            # A takeover polls, too: by its end some of what was polled may no longer be ours.
            self._topic.hold_back(polled)
            self._apply(change)
            return 0
        self._apply(change)
        records = self._held(polled)
        if not records:
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
        rejected_share = self._rejected_share.after(records, decision.rejected)
        self._after_step("merged")

        # 4. Encode the changed users in one call.
        with self._metrics.step.labels("encode").time():
            encoded = self._encode(decision, records)
        self._after_step("encoded")

        # 5. Write their rows. 6. Commit windows, rejected records and offsets together; only then
        # keep the windows.
        try:
            with self._metrics.step.labels("write").time():
                self._write(encoded, decision.erased_users)
            written_at = self._clock()
            self._after_step("written")
            with self._metrics.step.labels("commit").time():
                self._commit(decision)
        except (Outdated, LeaseRanOut) as exc:
            # What was written stays in the store without being committed: until the same clicks
            # are past again, the rows there are not those of the windows we hold.
            for partition, offset in decision.next_offsets.items():
                unsettled = max(offset, self._unsettled_until.get(partition, 0))
                self._unsettled_until[partition] = unsettled
            self._topic.rewind(_first_offsets(records))
            log.warning("batch.abandoned", records=len(records), reason=repr(exc))
            return len(records)
        self._after_step("committed")
        self._rejected_share = rejected_share
        self._settling.add(decision.windows, Counter(record.partition for record in records))
        self._account(records, decision, encoded, written_at)
        return len(records)

    # Steps ---------------------------------------------------------------------------------

    def _apply(self, change: AssignmentChange) -> None:
        for partition in change.lost:
            self._store.drop_partition(partition)
            self._unsettled_until.pop(partition, None)
            self._settling.drop(partition)
            with suppress(KeyError):  # no lag was ever reported
                self._metrics.lag.remove(str(partition))
        self._gained = (self._gained - change.lost) | change.gained
        if self._gained:
            started = self._expire_at = self._clock()
            self._health.waiting_for(f"taking {len(self._gained)} partitions over")
            self._metrics.ready.set(0)
            try:
                taken = self._takeover.take(self._gained)
            except (Outdated, LeaseRanOut) as exc:
                for partition in self._gained:
                    self._store.drop_partition(partition)
                log.warning("takeover.abandoned", reason=repr(exc))
                return
            give_back()
            self._unsettled_until |= taken.unsettled_until
            self._settling.take(taken.recent, self._clock())
            self._other_releases = taken.other_releases
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
        self._topic.rewind(_first_offsets([r for r in polled if r.partition not in held]))
        return [record for record in polled if record.partition in held]

    def _encode(self, decision: Decision, records: list[Record]) -> Encoded:
        # A predecessor may have written rows for clicks that it did not commit. Until we are past
        # those clicks, the rows in the store may be of windows that we know nothing of.
        settled = all(
            record.offset >= self._unsettled_until.get(record.partition, 0) for record in records
        )
        changed: dict[str, tuple[bytes, bytes]] = {}  # user → window, window before
        for partition, windows in decision.windows.items():
            for user_id, window in windows.items():
                if user_id in changed:
                    settled = False  # which of the two windows the rows are of is anybody's guess
                    log.warning("user.on_two_partitions", partition=partition)
                    if newest_ms(window) < newest_ms(changed[user_id][0]):
                        continue
                changed[user_id] = (window, self._store.packed(partition, user_id))
        packed, before = [one for one, _ in changed.values()], [one for _, one in changed.values()]
        return self._encoder.encode(list(changed), packed, before if settled else None)

    def _write(self, encoded: Encoded, erased_users: Iterable[str]) -> None:
        """Write rows, and delete those that other releases have of erased users, in one budget."""
        began_at, budget_s = time.monotonic(), self._settings.worker.step_budget_s
        lease = self._topic.lease_left_s
        self._index.write_interests(
            self._release, encoded.rows, encoded.stale_keys, budget_s=budget_s, lease=lease
        )
        if erased := sorted(erased_users):
            budget_s -= time.monotonic() - began_at
            self._index.forget(erased, self._other_releases, budget_s=budget_s, lease=lease)

    def _commit(self, decision: Decision) -> None:
        windows = [
            (partition, user_id, value)
            for partition, of_partition in decision.windows.items()
            for user_id, value in zip(
                of_partition, to_wires(list(of_partition.values()), self._store.codes), strict=True
            )
        ]
        self._topic.commit(windows, decision.rejected, decision.next_offsets)
        for partition, of_partition in decision.windows.items():
            self._store.put(partition, of_partition)

    # Around the steps ----------------------------------------------------------------------

    def _around(self, now: float) -> None:
        """What is due between batches."""
        due = self._settling.due(now, most=self._settings.worker.max_batch_clicks)
        if due is not None:
            self._write_again(*due)
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_EVERY_S
            self._expire_erasures()
        self._summary.log_if_due(now, self._report_lag())

    def _write_again(self, partition: int, user_ids: list[str]) -> None:
        """Write rows over what a predecessor's last write may have left, also for the erased."""
        packed = [self._store.packed(partition, user_id) for user_id in user_ids]
        encoded = self._encoder.encode(user_ids, packed, before=None)
        erased = [u for u, window in zip(user_ids, packed, strict=True) if was_erased(window)]
        with suppress(LeaseRanOut):  # if the partition stays ours, they stay due
            self._write(encoded, erased)
            if self._settling.done(partition, user_ids):
                log.info("partition.settled", partition=partition)

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
                self._commit(decision)
            except Outdated:
                return  # the next owner does it
            log.info("erasures.expired", users=decision.users)

    def _account(
        self, records: list[Record], decision: Decision, encoded: Encoded, written_at: float
    ) -> None:
        metrics = self._metrics
        produced = np.fromiter((r.timestamp_ms for r in records), np.float64, len(records)) / 1000.0
        freshness = np.maximum(written_at - produced, 0.0)
        metrics.freshness.observe(freshness)
        metrics.clicks.inc(decision.clicks)
        metrics.erasures.inc(decision.erasures)
        metrics.users.inc(decision.users)
        metrics.rows_written.inc(len(encoded.rows))
        metrics.rows_deleted.inc(len(encoded.stale_keys))
        for rejected in decision.rejected:
            metrics.rejected.labels(rejected.reason).inc()
        metrics.batch_clicks.observe(len(records))
        metrics.windows.set(len(self._store))
        self._summary.add(len(records), decision, float(freshness.max()))
        self._around(self._clock())

    def _report_lag(self) -> int:
        total = 0
        for partition in self._store.partitions:
            end, position = self._topic.highwater(partition), self._topic.position(partition)
            if end is not None and position is not None:
                self._metrics.lag.labels(str(partition)).set(max(0, end - position))
                total += max(0, end - position)
        return total


def _first_offsets(records: list[Record]) -> dict[int, int]:
    first: dict[int, int] = {}
    for record in records:
        first.setdefault(record.partition, record.offset)
    return first


class _Summary:
    """What happened since the last summary line."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._clear()

    def _clear(self) -> None:
        self._batches = self._clicks = self._users = self._rejected = 0
        self._freshness_max_s = 0.0

    def add(self, records: int, decision: Decision, freshness_max_s: float) -> None:
        self._batches += 1
        self._clicks += records
        self._users += decision.users
        self._rejected += len(decision.rejected)
        self._freshness_max_s = max(self._freshness_max_s, freshness_max_s)

    def log_if_due(self, now: float, lag: int) -> None:
        if now - self._since < _SUMMARY_EVERY_S:
            return
        if self._batches:
            log.info(
                "batches.applied",
                batches=self._batches,
                clicks=self._clicks,
                users=self._users,
                rejected=self._rejected,
                lag_clicks=lag,
                freshness_max_ms=round(self._freshness_max_s * 1000),
                seconds=round(now - self._since, 1),
            )
        self._since = now
        self._clear()
