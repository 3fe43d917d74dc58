"""Kafka as the update loop sees it: clicks in; windows, dead letters and offsets out at once.

The transaction is what makes a crash harmless: changed windows, rejected records and the offsets
that stand for them become visible together or not at all. It is fenced by the group's generation,
so a worker that was given up for dead cannot commit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import CommitFailedError, KafkaError

from consumers.batch import Record, Rejected
from encoder.errors import Misconfigured, Unavailable
from encoder.kafka_client import client_config, end_offsets, producer, read_to_end, translated
from encoder.settings import Settings
from encoder.window import CorruptWindow, Window, from_wire, to_wire


class Outdated(Exception):  # noqa: N818
    """The group has moved on since the batch was polled; nothing of it was committed."""


log = structlog.get_logger()

_LINGER_MS: Final = 5
_PRODUCER_BATCH_BYTES: Final = 256 * 1024
_HEADER_PREFIX: Final = "mindstream."


@dataclass(slots=True)
class AssignmentChange:
    """What the group decided since the last poll: apply `lost` first, then `gained`."""

    gained: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is untyped
    """Notes changes. Called on the client's own loop, where blocking would stop heartbeats."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._change = AssignmentChange()

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        with self._lock:
            for partition in revoked:
                self._change.gained.discard(partition.partition)
                self._change.lost.add(partition.partition)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._change.gained.update(partition.partition for partition in assigned)

    def lost(self) -> set[int]:
        with self._lock:
            return set(self._change.lost)

    def take(self) -> AssignmentChange:
        with self._lock:
            change, self._change = self._change, AssignmentChange()
        return change


class ClickTopic:
    """One worker's membership in the group, and its transactions."""

    def __init__(self, settings: Settings) -> None:
        kafka, worker = settings.kafka, settings.worker
        self._kafka = kafka
        self._budget_s = worker.step_budget_s
        self._listener = _Listener()
        self._membership: Any = None  # as of the last poll: what its clicks are committed with
        self._outdated: tuple[int, str] | None = None  # who the group no longer accepts
        self._held_back: list[Record] = []
        with translated("joining the group", kafka):
            self._consumer = KafkaConsumer(
                **client_config(kafka),
                group_id=worker.group_id,
                group_instance_id=worker.instance_id,
                partition_assignment_strategy=[CooperativeStickyAssignor],
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                session_timeout_ms=int(worker.session_timeout_s * 1000),
                heartbeat_interval_ms=int(worker.session_timeout_s * 1000 / 3),
                max_poll_interval_ms=int(worker.max_poll_interval_s * 1000),
                max_poll_records=worker.max_batch_clicks,
                max_partition_fetch_bytes=4 * 1024 * 1024,
                allow_auto_create_topics=False,
            )
            self._consumer.subscribe([kafka.clicks_topic], listener=self._listener)
            # A restarted worker takes its name again, which ends what its predecessor left open.
            name = worker.instance_id or f"{time.time_ns():x}"
            self._producer = producer(
                kafka,
                transactional_id=f"{worker.group_id}-{name}",
                transaction_timeout_ms=int(worker.transaction_timeout_s * 1000),
                compression_type="lz4",
                linger_ms=_LINGER_MS,
                batch_size=_PRODUCER_BATCH_BYTES,
                max_block_ms=int(worker.step_budget_s * 1000),
                delivery_timeout_ms=int(worker.step_budget_s * 1000),
                request_timeout_ms=int(worker.step_budget_s * 500),
            )
            self._producer.init_transactions()

    def poll(self, timeout_s: float) -> tuple[list[Record], AssignmentChange]:
        """Wait for clicks; returns as soon as there are any.

        Returns:
            Records in the order of their offsets within each partition, and how the assignment
            changed. Records of partitions just gained may be among them.
        """
        records = self._held_back or self._poll(timeout_s)
        self._held_back = []
        return records, self._listener.take()

    def keep_membership(self) -> set[int]:
        """Take part in the group while something else takes long; clicks wait for the next poll.

        Returns:
            Partitions that were lost since the last poll.
        """
        self._consumer.pause(*self._consumer.assignment())
        self._held_back += self._poll(0)
        self._consumer.resume(*self._consumer.paused())
        return self._listener.lost()

    def _poll(self, timeout_s: float) -> list[Record]:
        with translated("polling clicks", self._kafka):
            if self._outdated is not None:
                # Take part in the group, but take no clicks that we could not commit.
                self._consumer.pause(*self._consumer.assignment())
            polled = self._consumer.poll(int(timeout_s * 1000))
            # Kept from now, because kafka-python forgets its membership as soon as it hears that
            # the group has ended it, and the broker takes a commit without one from anybody.
            self._membership = self._consumer.group_metadata()
            if self._outdated is not None and _member(self._membership) != self._outdated:
                self._outdated = None
                self._consumer.resume(*self._consumer.paused())
        return [
            Record(partition.partition, record.offset, record.timestamp, record.key, record.value)
            for partition, of_partition in polled.items()
            for record in of_partition
        ]

    def end_offsets(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offsets after the last click written to each partition."""
        asked = [TopicPartition(self._kafka.clicks_topic, partition) for partition in partitions]
        with translated("reading the ends of the clicks", self._kafka):
            return {p.partition: end for p, end in end_offsets(self._kafka, asked).items()}

    def highwater(self, partition: int) -> int | None:
        """The offset after the partition's last record as of the last poll, None before it."""
        asked = TopicPartition(self._kafka.clicks_topic, partition)
        if asked not in self._consumer.assignment():
            return None
        highwater: int | None = self._consumer.highwater(asked)
        return highwater

    def position(self, partition: int) -> int | None:
        """The next offset to be polled, None where the partition is not ours."""
        asked = TopicPartition(self._kafka.clicks_topic, partition)
        if asked not in self._consumer.assignment():
            return None
        with translated("reading the position", self._kafka):
            position: int | None = self._consumer.position(asked, timeout_ms=1000)
        return position

    def restore(self, partitions: Iterable[int]) -> Iterator[tuple[int, str, Window | None]]:
        """Windows as committed, in the order they were written; None where one was removed.

        Yields:
            (partition, user id, window). A user comes once for every time it was written.

        Raises:
            Misconfigured: a record is no window; names its offset and the way out.
            Unavailable: Kafka does not answer.
        """
        topic = self._kafka.windows_topic
        asked = [TopicPartition(topic, partition) for partition in partitions]
        with translated(f"restoring {topic}", self._kafka):
            for records in read_to_end(self._kafka, asked, timeout_s=self._budget_s):
                for record in records:
                    try:
                        window = None if record.value is None else from_wire(record.value)
                        yield record.partition, record.key.decode(), window
                    except (CorruptWindow, UnicodeDecodeError, AttributeError) as exc:
                        raise Misconfigured(
                            f"{topic}[{record.partition}] at offset {record.offset} is no window:"
                            f" {exc}. To rebuild the windows from the clicks, stop all workers,"
                            f" delete {topic} and the offsets of the group, create the topics and"
                            " start again"
                        ) from exc

    def commit(
        self,
        windows: Iterable[tuple[int, str, Window | None]],
        rejected: Iterable[Rejected],
        next_offsets: dict[int, int],
    ) -> None:
        """Write windows, dead letters and offsets in one transaction.

        Args:
            windows: (partition, user id, window), None to remove.
            rejected: records for the dead-letter topic.
            next_offsets: partition → next offset to read, for every partition of `windows`:
                the offsets are what the group's generation fences.

        Raises:
            Outdated: the group has moved on; `rewind` and poll again. Polls return no clicks until
                this worker has joined the group anew.
            Misconfigured: another worker took this one's name. The process must end.
            Unavailable: not committed within the step's budget. The process must end.
        """
        with translated("committing", self._kafka):
            try:
                if self._membership.generation_id < 0 or not self._membership.member_id:
                    raise CommitFailedError("this worker is no member of the group")
                _within(self._budget_s, lambda: self._commit(windows, rejected, next_offsets))
            except CommitFailedError as exc:
                self._outdated = _member(self._membership)
                raise Outdated(str(exc)) from exc

    def rewind(self, offsets: dict[int, int]) -> None:
        """Poll again from these offsets, where the partitions are still ours."""
        assigned = self._consumer.assignment()
        for number, offset in offsets.items():
            partition = TopicPartition(self._kafka.clicks_topic, number)
            if partition in assigned:
                self._consumer.seek(partition, offset)

    def _commit(
        self,
        windows: Iterable[tuple[int, str, Window | None]],
        rejected: Iterable[Rejected],
        next_offsets: dict[int, int],
    ) -> None:
        self._producer.begin_transaction()
        try:
            self._fill_transaction(windows, rejected, next_offsets)
        except CommitFailedError:
            self._producer.abort_transaction()
            raise
        self._producer.commit_transaction()

    def _fill_transaction(
        self,
        windows: Iterable[tuple[int, str, Window | None]],
        rejected: Iterable[Rejected],
        next_offsets: dict[int, int],
    ) -> None:
        sent = [
            self._producer.send(
                self._kafka.windows_topic,
                key=user_id.encode(),
                value=None if window is None else to_wire(window),
                partition=partition,
            )
            for partition, user_id, window in windows
        ]
        sent += [
            self._producer.send(self._kafka.dead_letters_topic, **self._dead_letter(one))
            for one in rejected
        ]
        self._producer.flush(timeout=self._budget_s)
        for future in sent:
            future.get(timeout=self._budget_s)
        # Offsets last: the broker checks our generation here, when every window is in its log.
        # Whoever takes over after this point therefore reads these windows or waits for them.
        self._producer.send_offsets_to_transaction(
            {
                TopicPartition(self._kafka.clicks_topic, partition): OffsetAndMetadata(offset)
                for partition, offset in next_offsets.items()
            },
            self._membership,
        )

    def _dead_letter(self, rejected: Rejected) -> dict[str, Any]:
        record = rejected.record
        source = {
            "topic": self._kafka.clicks_topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp_ms,
            "reason": rejected.reason,
            "detail": rejected.detail,
        }
        return {
            "key": record.key,
            # A tombstone with a bad key has no value, and a record needs one of the two.
            "value": b"" if record.value is None and record.key is None else record.value,
            "headers": [(_HEADER_PREFIX + k, str(v).encode()) for k, v in source.items()],
            "partition": 0,
        }

    def close(self, timeout_s: float) -> None:
        """Leave the group and let go of the connections; nothing is committed."""
        deadline = time.monotonic() + timeout_s
        try:
            self._producer.close(timeout=timeout_s / 2)
        except KafkaError as exc:  # what it still holds was given up, or we would not be here
            log.warning("producer.close_failed", error=repr(exc))
        finally:
            left_s = max(0.0, deadline - time.monotonic())
            self._consumer.close(autocommit=False, timeout_ms=int(left_s * 1000))


def _member(membership: Any) -> tuple[int, str]:
    return membership.generation_id, membership.member_id


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
