"""Kafka as the update loop sees it: clicks in; windows, dead letters and offsets out at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import FencedInstanceIdError, KafkaError

from consumers.batch import Rejected
from consumers.lease import Lease
from consumers.transactions import Outdated, Transactions
from encoder.announced_items import Offsets
from encoder.errors import Unavailable
from encoder.kafka_client import (
    client_config,
    end_offsets,
    reader,
    translated,
)
from encoder.records import Record, hand_out_records
from encoder.release_topic import filled_reports, item_reports, withdrawn_reports
from encoder.settings import Settings
from encoder.windows_topic import Extent, WindowRecords, read_window_records

log = structlog.get_logger()

_REJOIN_S: Final = 0.2


@dataclass(slots=True)
class AssignmentChange:
    """What the group decided since the last poll: apply `lost` first, then `gained`."""

    gained: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Refused:
    """Whose commit the group refused, and when (time.monotonic)."""

    member: tuple[int, str]
    at: float


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is untyped
    """Notes changes. Called on the client's own loop, where blocking would stop heartbeats."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._change = AssignmentChange()
        self._revoked: set[int] = set()

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        with self._lock:
            for partition in revoked:
                self._change.gained.discard(partition.partition)
                self._change.lost.add(partition.partition)
                self._revoked.add(partition.partition)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._change.gained.update(partition.partition for partition in assigned)

    def lost(self) -> set[int]:
        with self._lock:
            return set(self._change.lost)

    def take_revoked(self) -> set[int]:
        """Those revoked since this was last asked, whether or not they were given back."""
        with self._lock:
            revoked, self._revoked = self._revoked, set()
            return revoked

    def take(self) -> AssignmentChange:
        with self._lock:
            change, self._change = self._change, AssignmentChange()
        return change


class ClickTopic:
    """One worker's membership in the group, and its transactions."""

    def __init__(self, settings: Settings) -> None:
        kafka, worker = settings.kafka, settings.worker
        self._kafka = kafka
        self._most = worker.max_batch_clicks
        self._budget_s = worker.step_budget_s
        self._stall_s = worker.open_transaction_s
        self._silence_s = worker.max_poll_interval_s
        self._lease = Lease(worker.session_timeout_s)
        self._polled_at = self._began_at = time.monotonic()
        self._listener = _Listener()
        self._membership: Any = None  # as of the last poll: what its clicks are committed with
        self._refused: _Refused | None = None
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
            hand_out_records(self._consumer)
            _find_once(self._consumer._coordinator)
            self._consumer.subscribe([kafka.clicks_topic], listener=self._listener)
            self._transactions = Transactions(settings)

    def poll(
        self, timeout_s: float, most: int | None = None
    ) -> tuple[list[Record], AssignmentChange]:
        """Wait for clicks; returns as soon as there are any.

        Args:
            timeout_s: how long to wait.
            most: records to return; the settings' bound otherwise.

        Returns:
            Records in the order of their offsets within each partition, and how the assignment
            changed. Records of partitions just gained may be among them.
        """
        records = self._held_back or self._poll(timeout_s, most)
        self._held_back = []
        most = most or self._most
        self.rewind(records[most:])
        return records[:most], self._listener.take()

    def hold_back(self, records: list[Record]) -> None:
        """Have the next poll return these, as far as their partitions stay ours until then."""
        self._held_back = records

    def keep_membership(self) -> set[int]:
        """Take part in the group while something else takes long; clicks wait for the next poll.

        Returns:
            Partitions that were lost since the last poll.
        """
        self._consumer.pause(*self._consumer.assignment())
        # A poll that waits for nothing never gets to the end of a rebalance.
        polled = self._poll(_REJOIN_S if self.rejoining else 0)
        self._held_back += polled  # afterwards, because a poll may take some of them away
        self._consumer.resume(*self._consumer.paused())
        return self._listener.lost()

    @property
    def rejoining(self) -> bool:
        """Whether the next poll may change the assignment."""
        return bool(self._consumer._coordinator.need_rejoin())

    @property
    def membership(self) -> Any:
        """What the clicks of the last poll are committed with, and written under."""
        return self._membership

    def lease_left_s(self) -> float:
        """For how many seconds this worker may write for its partitions; none at or below 0."""
        return self._lease_left_s(self._membership)

    def lease_of(self, membership: Any) -> Callable[[], float]:
        """The same for clicks that were polled under this membership. For any thread."""
        return lambda: self._lease_left_s(membership)

    def _lease_left_s(self, membership: Any) -> float:
        self._note_heartbeat()
        joined = membership.generation_id >= 0
        if not joined or _member(self._consumer.group_metadata()) != _member(membership):
            return 0.0
        return self._lease.left_s(time.monotonic())

    def _poll(self, timeout_s: float, most: int | None = None) -> list[Record]:
        before, self._polled_at = self._polled_at, time.monotonic()
        member = _member(self._membership) if self._membership else None
        with translated("polling clicks", self._kafka):
            leased = self._membership is None or self.lease_left_s() > 0
            if self._refused is not None or not leased:
                # Take part in the group, but take no clicks that we could not write or commit.
                self._consumer.pause(*self._consumer.assignment())
            polled = self._consumer.poll(int(timeout_s * 1000), max_records=most)
            # Kept from now, because kafka-python forgets its membership as soon as it hears that
            # the group has ended it, and the broker takes a commit without one from anybody.
            self._membership = self._consumer.group_metadata()
            if self._membership.generation_id >= 0 and _member(self._membership) != member:
                # Joined. The group may have answered while the poll before was under way.
                self._lease.confirm(before)
            if self._refused is not None and self._accepted_since(self._refused):
                self._refused = None
            # Of a partition that was revoked and given back, all is polled anew.
            revoked = self._listener.take_revoked()
            self._held_back = [one for one in self._held_back if one.partition not in revoked]
            self._check_membership()
            if self._refused is None and self.lease_left_s() > 0:
                self._consumer.resume(*self._consumer.paused())
        return [record for of_partition in polled.values() for record in of_partition]

    def _accepted_since(self, refused: _Refused) -> bool:
        """Whether this worker has joined anew, or the group knows it as before after all.

        Just after a restart of the broker all members of a group were seen refused at once.
        """
        confirmed = self._heartbeat_confirmed_at() > refused.at and not self.rejoining
        return confirmed or _member(self._membership) != refused.member

    def _note_heartbeat(self) -> None:
        self._lease.confirm(self._heartbeat_confirmed_at())

    def _heartbeat_confirmed_at(self) -> float:
        """When the newest heartbeat was sent, if it is answered (time.monotonic)."""
        heartbeat = self._consumer._coordinator.heartbeat
        # In this order: an answer that comes in between cannot be taken for one to a later request.
        sent: float = heartbeat.last_send
        return sent if heartbeat.last_receive >= sent else -math.inf

    def _check_membership(self) -> None:
        """See that the group still knows us, or can be expected to."""
        coordinator = self._consumer._coordinator
        joined = self._membership.generation_id >= 0 and not coordinator.need_rejoin()
        if joined and not coordinator._heartbeat_enabled:
            # All that kafka-python does about a heartbeat that was fenced.
            raise FencedInstanceIdError("a heartbeat was refused")
        self._note_heartbeat()
        now = time.monotonic()
        silent_s = min(self._lease.unconfirmed_s(now), now - self._began_at)
        if silent_s > self._silence_s:
            raise Unavailable(
                f"Kafka at {self._kafka.bootstrap_servers} has not confirmed for {silent_s:.0f} s"
                " that this worker is in its group; is the broker up?"
            )

    def end_offsets(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offsets after the last click written to each partition."""
        asked = [TopicPartition(self._kafka.clicks_topic, partition) for partition in partitions]
        with translated("reading the ends of the clicks", self._kafka):
            return {p.partition: end for p, end in end_offsets(self._kafka, asked).items()}

    def begin_offsets(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offsets of the first click that each partition still has."""
        asked = [TopicPartition(self._kafka.clicks_topic, partition) for partition in partitions]
        doing = "reading the beginnings of the clicks"
        with translated(doing, self._kafka), reader(self._kafka) as consumer:
            begins = consumer.beginning_offsets(asked)
        return {partition.partition: begin for partition, begin in begins.items()}

    def committed(self, partitions: Iterable[int]) -> dict[int, OffsetAndMetadata]:
        """What the group committed; partitions without a commit are left out.

        Waits for a commit that is under way.
        """
        found: dict[int, OffsetAndMetadata] = {}
        with translated("reading the group's offsets", self._kafka):
            for number in partitions:
                partition = TopicPartition(self._kafka.clicks_topic, number)
                committed = self._consumer.committed(
                    partition, metadata=True, timeout_ms=int(self._budget_s * 1000)
                )
                if committed is not None and committed.offset >= 0:
                    found[number] = committed
        return found

    def note_extents(self, extents: dict[int, Extent]) -> None:
        """What the windows topic holds of partitions: committed with their offsets from now on."""
        self._transactions.note_extents(extents)

    def highwater(self, partition: int) -> int | None:
        """The offset after the partition's last record as of the last poll, None before it."""
        asked = TopicPartition(self._kafka.clicks_topic, partition)
        if asked not in self._consumer.assignment():
            return None
        highwater: int | None = self._consumer.highwater(asked)
        return highwater

    def position(self, partition: int) -> int | None:
        """The next offset to be polled; None where it is not known, or the partition not ours."""
        asked = TopicPartition(self._kafka.clicks_topic, partition)
        if asked not in self._consumer.assignment():
            return None
        try:
            position: int | None = self._consumer.position(asked, timeout_ms=1000)
        except KafkaError:  # it has to be asked for, and the broker is away
            return None
        return position

    def restore(self, partitions: Iterable[int]) -> Generator[list[WindowRecords]]:
        """Windows as committed; yields and raises what `read_window_records` does."""
        return read_window_records(self._kafka, partitions, timeout_s=self._stall_s)

    def commit(
        self,
        windows: Mapping[int, Iterable[tuple[str, bytes | None]]],
        rejected: Iterable[Rejected],
        next_offsets: dict[int, int],
        membership: Any,
        reports: Mapping[tuple[str, int], bool] | None = None,
    ) -> None:
        """Write windows, dead letters and offsets in one transaction. For any one thread.

        With them reports of releases and partitions: as `report_filled` where they are true, as
        `take_back` where they are false.

        Args and errors are those of `Transactions.commit`. After `Outdated`, `rewind` and poll
        again: polls return no clicks until this worker has joined the group anew.
        """
        with self._noting_refusal(membership):
            records: list[tuple[bytes, bytes | None]] = []
            for (release, partition), filled in (reports or {}).items():
                if filled:
                    records += filled_reports(release, [partition])
                else:
                    records += withdrawn_reports([(release, partition)])
            self._transactions.commit(windows, rejected, next_offsets, membership, records)

    def report_filled(self, release: str, offsets: dict[int, int]) -> None:
        """Report that these partitions' interests are in the release's collection.

        In a transaction with their offsets, so that the group's generation fences it like a commit:
        an owner that was given up must not report what it no longer keeps up to date.

        Args:
            release: whose collection it is.
            offsets: partition → next offset to read, which stays as it is.

        Raises:
            Outdated: as `commit`; and whatever else that raises.
        """
        self._report(filled_reports(release, offsets), offsets)

    def take_back(self, reports: Iterable[tuple[str, int]], offsets: dict[int, int]) -> None:
        """Withdraw reports of releases whose collections this worker does not keep up to date.

        Fenced as `report_filled`: the owner after this one may have filled them since.

        Args:
            reports: release and partition.
            offsets: of these partitions, as there.

        Raises:
            Outdated: as there.
        """
        self._report(withdrawn_reports(reports), offsets)

    def report_items(
        self, seen: Mapping[tuple[str, int], Offsets], offsets: dict[int, int]
    ) -> None:
        """Report up to where items are taken into account, by release and partition.

        Fenced as `report_filled`: rows that the owner after this one wrote may know less.

        Args:
            seen: next offsets of the items topic.
            offsets: of these partitions, as there.

        Raises:
            Outdated: as there.
        """
        self._report(item_reports(seen), offsets)

    def _report(
        self, records: Sequence[tuple[bytes, bytes | None]], offsets: dict[int, int]
    ) -> None:
        if records and offsets:
            with self._noting_refusal(self._membership):
                self._transactions.report(records, offsets, self._membership)

    @contextmanager
    def _noting_refusal(self, membership: Any) -> Iterator[None]:
        try:
            yield
        except Outdated:
            # If another worker has our name, heartbeats are refused next, and that ends this one.
            self._refused = _Refused(_member(membership), time.monotonic())
            raise

    def rewind(self, records: Iterable[Record]) -> None:
        """Poll these and what follows them again, where their partitions are still ours.

        Args:
            records: in the order of their offsets within each partition.
        """
        first: dict[int, int] = {}
        for record in records:
            first.setdefault(record.partition, record.offset)
        self._held_back = [one for one in self._held_back if one.partition not in first]
        assigned = self._consumer.assignment()
        for number, offset in first.items():
            partition = TopicPartition(self._kafka.clicks_topic, number)
            if partition in assigned:
                self._consumer.seek(partition, offset)

    def close(self, timeout_s: float) -> None:
        """Leave the group and let go of the connections; nothing is committed."""
        deadline = time.monotonic() + timeout_s
        try:
            self._transactions.close(timeout_s / 2)
        except KafkaError as exc:  # what it still holds was given up, or we would not be here
            log.warning("producer.close_failed", error=repr(exc))
        finally:
            left_s = max(0.0, deadline - time.monotonic())
            self._consumer.close(autocommit=False, timeout_ms=int(left_s * 1000))


def _find_once(coordinator: Any) -> None:
    """Have polls look for the group's coordinator only while it is not known.

    kafka-python has the consumer's own thread see to it at every poll, which costs a tenth of a
    loop over few clicks.
    """
    find = coordinator.ensure_coordinator_ready

    def ensure(timeout_ms: float | None = None) -> bool:
        return not coordinator.coordinator_unknown() or bool(find(timeout_ms=timeout_ms))

    coordinator.ensure_coordinator_ready = ensure


def _member(membership: Any) -> tuple[int, str]:
    return membership.generation_id, membership.member_id
