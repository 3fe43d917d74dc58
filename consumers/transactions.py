"""A worker's transactions: windows, dead letters and offsets become visible at once, or not at all.

That is what makes a crash harmless. A transaction is fenced by the group's generation, so that a
worker that was given up for dead cannot commit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import CommitFailedError, FencedInstanceIdError, ProducerFencedError

from consumers.batch import Rejected
from consumers.bulk_send import send_all
from encoder.dead_letter_topic import DeadLetter
from encoder.errors import Misconfigured, Unavailable
from encoder.kafka_client import producer, translated
from encoder.settings import Settings
from encoder.windows_topic import HOW_TO_REBUILD, Extent


class Outdated(Exception):  # noqa: N818
    """The group has moved on since the batch was polled; nothing of it was committed."""


_LINGER_MS: Final = 5
# A transaction that begins before the broker is through with the one before is sent again, and
# kafka-python sleeps that long first. Its default of 100 ms would be most of a small commit.
_RETRY_BACKOFF_MS: Final = 5
_BATCH_BYTES: Final = 256 * 1024


class Transactions:
    """One worker's transactions. For any one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        """Open the producer, which ends what a predecessor of this worker's name left open."""
        kafka, worker = settings.kafka, settings.worker
        self._kafka = kafka
        self._budget_s = worker.step_budget_s
        self._timeout_s = worker.transaction_timeout_s
        self._instance_id = worker.instance_id
        self._extents: dict[int, Extent] = {}  # of the partitions taken over, as committed
        name = worker.instance_id or f"{time.time_ns():x}"
        self._producer = producer(
            kafka,
            transactional_id=f"{worker.group_id}-{name}",
            transaction_timeout_ms=int(worker.transaction_timeout_s * 1000),
            compression_type="lz4",
            linger_ms=_LINGER_MS,
            retry_backoff_ms=_RETRY_BACKOFF_MS,
            batch_size=_BATCH_BYTES,
            max_block_ms=int(worker.step_budget_s * 1000),
            delivery_timeout_ms=int(worker.step_budget_s * 1000),
            request_timeout_ms=int(worker.step_budget_s * 500),
        )
        self._producer.init_transactions()

    def note_extents(self, extents: dict[int, Extent]) -> None:
        """What the windows topic holds of partitions: committed with their offsets from now on."""
        self._extents.update(extents)

    def commit(
        self,
        windows: Mapping[int, Iterable[tuple[str, bytes | None]]],
        rejected: Iterable[Rejected],
        next_offsets: dict[int, int],
        membership: Any,
        reports: Sequence[tuple[bytes, bytes | None]] = (),
    ) -> None:
        """Write windows, dead letters, reports and offsets in one transaction.

        Args:
            windows: partition → (user id, window in its wire form, None to remove).
            rejected: records for the dead-letter topic.
            next_offsets: partition → next offset to read, for every partition of `windows`:
                the offsets are what the group's generation fences.
            membership: that the clicks were polled under.
            reports: keys and values for the releases topic, as in `report`.

        Raises:
            Outdated: the group has moved on.
            Misconfigured: another worker took this one's name, or the windows topic lost records.
                The process must end.
            Unavailable: not committed within the step's budget. The process must end.
        """
        with translated("committing", self._kafka):
            self._transact(
                lambda: self._fill_transaction(
                    windows, rejected, next_offsets, membership, reports
                ),
                membership,
            )

    def report(
        self,
        records: Sequence[tuple[bytes, bytes | None]],
        offsets: dict[int, int],
        membership: Any,
    ) -> None:
        """Write to the releases topic what holds only while this worker owns its partitions.

        With the partitions' offsets, so that the group's generation fences it like a commit: an
        owner that was given up must not report what it no longer keeps up to date.

        Args:
            records: key and value of each.
            offsets: partition → next offset to read, which stays as it is; one at least.
            membership: that this worker holds the partitions under.

        Raises:
            Outdated: as `commit`; and whatever else that raises.
        """

        def fill() -> None:
            for future in self._send_reports(records):
                future.get(timeout=self._budget_s)
            self._send_offsets(offsets, membership)

        with translated("reporting to the releases topic", self._kafka):
            self._transact(fill, membership)

    def close(self, timeout_s: float) -> None:
        """Let go of the producer; raises a KafkaError where it is not through with what it has."""
        self._producer.close(timeout=timeout_s)

    def _transact(self, fill: Callable[[], None], membership: Any) -> None:
        began_at = time.monotonic()
        try:
            if membership.generation_id < 0 or not membership.member_id:
                raise CommitFailedError("this worker is no member of the group")
            _within(self._budget_s, lambda: self._commit(fill))
        except (CommitFailedError, FencedInstanceIdError) as exc:
            raise Outdated(repr(exc)) from exc
        except ProducerFencedError as exc:
            taken_s = time.monotonic() - began_at
            if self._instance_id is None or taken_s > self._timeout_s:
                # Nobody took our name; the broker ended a transaction that took too long.
                raise Unavailable(
                    f"the broker ended a transaction after {taken_s:.0f} s, which is beyond"
                    " MINDSTREAM_WORKER__TRANSACTION_TIMEOUT_S"
                    f" ({self._timeout_s:g} s): {exc!r}"
                ) from exc
            raise

    def _commit(self, fill: Callable[[], None]) -> None:
        # kafka-python keeps the offsets of a commit that was refused and sends them along with the
        # next one, though what they stand for was rolled back.
        transactions = self._producer._transaction_manager
        with transactions._lock:
            transactions._pending_txn_offset_commits.clear()
        self._producer.begin_transaction()
        try:
            fill()
        except (CommitFailedError, FencedInstanceIdError, Misconfigured):
            self._producer.abort_transaction()
            raise
        self._producer.commit_transaction()

    def _fill_transaction(
        self,
        windows: Mapping[int, Iterable[tuple[str, bytes | None]]],
        rejected: Iterable[Rejected],
        next_offsets: dict[int, int],
        membership: Any,
        reports: Sequence[tuple[bytes, bytes | None]],
    ) -> None:
        written = [
            batch
            for partition, of_partition in windows.items()
            for batch in send_all(
                self._producer,
                self._kafka.windows_topic,
                partition,
                ((user_id.encode(), window) for user_id, window in of_partition),
            )
        ]
        letters = [
            self._producer.send(self._kafka.dead_letters_topic, **self._letter(one).to_record())
            for one in rejected
        ]
        others = [*letters, *self._send_reports(reports)]
        self._producer.flush(timeout=self._budget_s)
        for batch in written:
            self._extend(batch.partition, batch.first_offset(self._budget_s), batch.count)
        for other in others:
            other.get(timeout=self._budget_s)
        # Offsets last: the broker checks our generation here, when every window is in its log.
        # Whoever takes over after this point therefore reads these windows or waits for them.
        self._send_offsets(next_offsets, membership)

    def _send_reports(self, records: Sequence[tuple[bytes, bytes | None]]) -> list[Any]:
        topic = self._kafka.releases_topic
        return [self._producer.send(topic, key=key, value=value) for key, value in records]

    def _send_offsets(self, next_offsets: dict[int, int], membership: Any) -> None:
        self._producer.send_offsets_to_transaction(
            {
                TopicPartition(self._kafka.clicks_topic, partition): OffsetAndMetadata(
                    offset, self._extent_metadata(partition)
                )
                for partition, offset in next_offsets.items()
            },
            membership,
        )

    def _extend(self, partition: int, offset: int, count: int) -> None:
        """Take note of where windows were written, also if the transaction is aborted later."""
        extent = self._extents.get(partition)
        # Offset -1: the broker has the records already and does not tell where.
        if extent is None or offset < 0:
            return
        if offset < extent.end:
            raise Misconfigured(
                f"{self._kafka.windows_topic}[{partition}] lost its end: it reached offset"
                f" {extent.end}, and a window was written at {offset}. To rebuild the"
                f" windows from the clicks, {HOW_TO_REBUILD}"
            )
        self._extents[partition] = extent.reaching(offset + count)

    def _extent_metadata(self, partition: int) -> str:
        extent = self._extents.get(partition)
        return "" if extent is None else extent.to_metadata()

    def _letter(self, rejected: Rejected) -> DeadLetter:
        record = rejected.record
        return DeadLetter(
            topic=self._kafka.clicks_topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp,
            reason=rejected.reason,
            detail=rejected.detail,
            key=record.key,
            value=record.value,
            headers=record.headers,
        )


def _within(budget_s: float, work: Callable[[], None]) -> None:
    """Run work that may block for ever, but wait for it only so long.

    Raises:
        Unavailable: it did not end in time. It may still be running, so the process must end.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run, name="commit", daemon=True)
    thread.start()
    thread.join(budget_s)
    if thread.is_alive():
        raise Unavailable(f"the transaction did not end within step_budget_s ({budget_s:g} s)")
    if raised:
        raise raised[0]
