"""The windows topic: what its records say, and what of it must still be there.

A windows topic that lost records looks like one that never had them. So every commit of the group
keeps, as metadata of a partition's offset, the extent that the partition of the windows topic had
(`Extent`). Whoever takes the partition over compares it with what the topic holds now.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from kafka import TopicPartition
from pydantic import BaseModel, ConfigDict, ValidationError

from encoder.errors import Misconfigured
from encoder.kafka_client import admin_client, read_blocks_to_end, reader, translated
from encoder.read_ahead import read_ahead
from encoder.records import RecordBlock
from encoder.settings import KafkaSettings
from encoder.window import CorruptWindow, Window, from_wire

HOW_TO_REBUILD: Final = "stop all workers and run `mindstream rebuild`"

_GATHERED: Final = 16_384  # records are worked on so many at a time


@dataclass(frozen=True, slots=True)
class Extent:
    """What one partition of the windows topic holds, or must hold.

    Attributes:
        topic_id: Kafka's own id of the topic; another one after it was deleted and created again.
        start: the log's first offset. Deleting records moves it, compaction does not.
        end: the offset after the last record.
    """

    topic_id: str
    start: int
    end: int

    def to_metadata(self) -> str:
        """The extent as the metadata of a committed offset."""
        note = _Note(version=1, topic=self.topic_id, start=self.start, end=self.end)
        return note.model_dump_json()

    def reaching(self, end: int) -> Extent:
        """The extent once the log reaches `end`."""
        return Extent(self.topic_id, self.start, end)


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    topic: str
    start: int
    end: int


REBUILDING: Final = '{"version":1,"rebuilding":true}'
"""Metadata in place of an extent while a rebuild is under way: nobody may take the partition."""


def check_extent(topic: str, partition: int, metadata: str, found: Extent) -> None:
    """Compare what was committed with what the topic holds.

    Args:
        topic: name of the windows topic.
        partition: whose extent it is.
        metadata: of the committed offset; an empty one says nothing and is not compared.
        found: what the partition holds now.

    Raises:
        Misconfigured: windows are missing, or a rebuild has not ended; says how to rebuild.
    """
    if not metadata:
        return
    where = f"{topic}[{partition}]"
    if metadata == REBUILDING:
        raise Misconfigured(f"a rebuild of {where} has not ended: {HOW_TO_REBUILD} again")
    try:
        noted = _Note.model_validate_json(metadata)
    except ValidationError as exc:
        raise Misconfigured(
            f"the group's offset for the clicks of partition {partition} has metadata that this"
            f" version does not read, {metadata[:200]!r}; run the version that wrote it, or"
            f" {HOW_TO_REBUILD}"
        ) from exc
    if found.topic_id != noted.topic:
        lost = (
            f"{topic} was deleted and created again: the group knows it by the id {noted.topic},"
            f" with {where} reaching offset {noted.end}, and it has the id {found.topic_id}"
        )
    elif found.start > noted.start:
        lost = f"{where} was truncated: it began at offset {noted.start}, and begins at"
        lost += f" {found.start}"
    elif found.end < noted.end:
        lost = f"{where} lost its end: it reached offset {noted.end}, and ends at {found.end}"
    else:
        return
    raise Misconfigured(f"{lost}. To rebuild the windows from the clicks, {HOW_TO_REBUILD}")


def read_extents(settings: KafkaSettings, partitions: Iterable[int]) -> dict[int, Extent]:
    """What these partitions of the windows topic hold now, open transactions included.

    Raises:
        Misconfigured: the topic is not there.
        Unavailable: Kafka does not answer.
    """
    topic = settings.windows_topic
    asked = [TopicPartition(topic, partition) for partition in partitions]
    with translated(f"looking at {topic}", settings):
        with admin_client(settings) as admin:
            (described,) = admin.describe_topics([topic])
        there = {partition["partition_index"] for partition in described["partitions"]}
        if not there.issuperset(one.partition for one in asked):
            raise Misconfigured(
                f"Kafka at {settings.bootstrap_servers} no longer has all partitions of {topic};"
                f" create the topics with `mindstream topics create`, then {HOW_TO_REBUILD}"
            )
        with reader(settings, "read_uncommitted") as consumer:
            starts, ends = consumer.beginning_offsets(asked), consumer.end_offsets(asked)
    return {
        one.partition: Extent(str(described["topic_id"]), starts[one], ends[one]) for one in asked
    }


class CorruptWindowRecord(CorruptWindow):
    """A record of the windows topic that is no window."""

    def __init__(self, partition: int, offset: int, why: str) -> None:
        super().__init__(why)
        self.partition = partition
        self.offset = offset

    def advice(self, topic: str) -> str:
        """Which record it is, and what to do about it."""
        return (
            f"{topic}[{self.partition}] at offset {self.offset} is no window: {self}."
            f" To rebuild the windows from the clicks, {HOW_TO_REBUILD}"
        )


@dataclass(frozen=True, slots=True)
class WindowRecords:
    """Records of one partition of the windows topic, in the order of their offsets.

    Attributes:
        offsets: of each record.
        user_ids: whose window it is.
        values: the window's wire form; None where it was removed.
        written_at_ms: by the clock of the worker that wrote it.
    """

    partition: int
    offsets: list[int]
    user_ids: list[str]
    values: list[bytes | None]
    written_at_ms: list[int]

    def __len__(self) -> int:
        return len(self.offsets)

    def written_since(self, since_ms: int) -> set[str]:
        """The users of records that were written then or later."""
        if max(self.written_at_ms, default=since_ms - 1) < since_ms:
            return set()
        written = zip(self.user_ids, self.written_at_ms, strict=True)
        return {user_id for user_id, at_ms in written if at_ms >= since_ms}


def read_window_records(
    settings: KafkaSettings,
    partitions: Iterable[int],
    *,
    timeout_s: float,
    start: Mapping[int, int] | None = None,
) -> Generator[list[WindowRecords]]:
    """What the windows topic holds of some partitions, in the order it was written there.

    The next are read in a thread meanwhile, until all are or the generator is closed.

    Args:
        settings: where the topic is.
        partitions: which of its partitions.
        timeout_s: the longest wait without any progress.
        start: partition → offset to start from; the beginning where absent.

    Yields:
        Some thousand records at a time. A user comes once for every time it was written, as far as
        the topic was not compacted.

    Raises:
        Misconfigured: a record has no user; names its offset and the way out.
        Unavailable: Kafka does not answer.
    """
    return read_ahead(_gathered(settings, list(partitions), timeout_s, start or {}))


def _gathered(
    settings: KafkaSettings, partitions: list[int], timeout_s: float, start: Mapping[int, int]
) -> Generator[list[WindowRecords]]:
    topic = settings.windows_topic
    asked = [TopicPartition(topic, partition) for partition in partitions]
    begins = {one: start[one.partition] for one in asked if one.partition in start}
    gathered: list[WindowRecords] = []
    with translated(f"reading {topic}", settings):
        for blocks in read_blocks_to_end(settings, asked, timeout_s=timeout_s, start=begins):
            try:
                gathered += map(_window_records, blocks)
            except CorruptWindowRecord as exc:
                raise Misconfigured(exc.advice(topic)) from exc
            if sum(map(len, gathered)) >= _GATHERED:
                yield gathered
                gathered = []
    if gathered:
        yield gathered


def _window_records(block: RecordBlock) -> WindowRecords:
    try:
        user_ids = [key.decode() for key in block.keys]  # type: ignore[union-attr]
    except (AttributeError, UnicodeDecodeError):
        for offset, key in zip(block.offsets, block.keys, strict=True):
            _user(block.partition, offset, key)
        raise
    return WindowRecords(
        block.partition, block.offsets, user_ids, block.values, block.timestamps_ms
    )


def read_windows(
    settings: KafkaSettings, partitions: Iterable[int], *, timeout_s: float
) -> Iterator[tuple[int, str, Window | None]]:
    """Windows in the order they were written, the newest of a user last: (partition, user, window).

    A window is None where it was removed. Takes and raises what `read_window_records` does, and
    Misconfigured also where a value is no window.
    """
    for gathered in read_window_records(settings, partitions, timeout_s=timeout_s):
        for part in gathered:
            for offset, user_id, value in zip(
                part.offsets, part.user_ids, part.values, strict=True
            ):
                try:
                    window = _window(part.partition, offset, value)
                except CorruptWindowRecord as exc:
                    raise Misconfigured(exc.advice(settings.windows_topic)) from exc
                yield part.partition, user_id, window


def _window(partition: int, offset: int, value: bytes | None) -> Window | None:
    try:
        return None if value is None else from_wire(value)
    except CorruptWindow as exc:
        raise CorruptWindowRecord(partition, offset, str(exc)) from exc


def parse_window_record(record: Any) -> tuple[str, Window | None]:
    """The user and the window of a record of the windows topic, None where it was removed.

    Raises:
        CorruptWindowRecord: it is no such record.
    """
    partition, offset = record.partition, record.offset
    return _user(partition, offset, record.key), _window(partition, offset, record.value)


def _user(partition: int, offset: int, key: bytes | None) -> str:
    if key is None:
        raise CorruptWindowRecord(partition, offset, "no key")
    try:
        return key.decode()
    except UnicodeDecodeError as exc:
        raise CorruptWindowRecord(partition, offset, f"key: {exc}") from exc
