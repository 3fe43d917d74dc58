"""How consumers hand records out: as what we need of each, or a whole batch at a time in columns.

kafka-python makes two objects of every record and a call of every number in it, which for a small
record costs several times what reading it does; and it takes a record for corrupt whose header
names are not UTF-8, as producers in C and Go can write them, and never gets past it. So batches are
taken apart here. Fetching, checksums, transactions and positions stay kafka-python's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from encoder.record_columns import read_columns

Headers = tuple[tuple[str, bytes | None], ...]

_TWO_BYTES: Final = 0x80  # what the first byte of a longer number is at least
_MANY: Final = 32  # records of a batch, from which on they are read at once


class Record(NamedTuple):
    r"""One record, as it lay in its partition.

    Attributes:
        timestamp: when the record was produced, in ms.
        value: None for a tombstone.
        headers: names may repeat, values may be null; a name's bytes that are not UTF-8 are
            written as `\xff`.
    """

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """Records of one partition, in the order of their offsets.

    Attributes:
        offsets: of each record.
        timestamps_ms: of each record.
        keys: of each record; None where it has none.
        values: of each record; None for a tombstone.
        headers: of each record.
    """

    partition: int
    offsets: list[int]
    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def offset(self) -> int:
        """Of the last record; kafka-python skips what lies before the offset it asked for."""
        return self.offsets[-1]

    def records(self) -> Iterator[Record]:
        """One at a time."""
        columns = (self.offsets, self.timestamps_ms, self.keys, self.values, self.headers)
        return map(Record._make, zip(repeat(self.partition), *columns, strict=False))


def hand_out_records(consumer: KafkaConsumer) -> None:
    """Make a new consumer poll our records."""
    consumer._fetcher.PartitionRecords = _PartitionRecords


def hand_out_blocks(consumer: KafkaConsumer) -> None:
    """Make a new consumer poll blocks of records; its `max_poll_records` then counts blocks."""
    consumer._fetcher.PartitionRecords = _PartitionBlocks


class _PartitionBlocks(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python is untyped
    def _unpack_records(self, tp: Any, records: Any, *_deserializers: Any) -> Iterator[Any]:
        while (batch := records.next_batch()) is not None:
            if batch.magic != 2:
                raise CorruptRecordError(
                    f"{tp.topic}[{tp.partition}] at offset {batch.base_offset} has message format"
                    f" {batch.magic}, which Kafka 4 no longer knows"
                )
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(
                    f"{tp.topic}[{tp.partition}] at offset {batch.base_offset}: wrong checksum"
                )
            self.leader_epoch = batch.leader_epoch
            block = None
            if self._is_committed(batch) and not batch.is_control_batch:
                block = _block(tp.partition, batch, self.fetch_offset)
                self.records_read += len(block)
                self.bytes_read += batch.size_in_bytes
            if block:
                yield from self._handed_out(block, batch.next_offset)
            # Compaction keeps a batch's last offset, so this passes over what it has taken away.
            self.next_fetch_offset = batch.next_offset
        self.drain()

    def _handed_out(self, block: RecordBlock, next_offset: int) -> Iterator[Any]:
        """A block as the consumer's user gets it; before each item, `next_fetch_offset` is set."""
        self.next_fetch_offset = next_offset
        yield block

    def _is_committed(self, batch: Any) -> bool:
        """Whether a batch counts; to be asked of all batches in order."""
        if self.isolation_level != IsolationLevel.READ_COMMITTED or not batch.has_producer_id():
            return True
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return False
        return not self._is_batch_aborted(batch)


class _PartitionRecords(_PartitionBlocks):
    def _handed_out(self, block: RecordBlock, next_offset: int) -> Iterator[Record]:
        for record in block.records():
            self.next_fetch_offset = record.offset + 1
            yield record


def _block(partition: int, batch: DefaultRecordBatch, first_offset: int) -> RecordBlock:
    """A batch's records from an offset on."""
    batch._maybe_uncompress()
    buffer, at = bytes(batch._buffer), batch._pos
    base, since_ms = batch.base_offset, batch.first_timestamp
    appended_ms = batch.max_timestamp if batch.timestamp_type else None
    count = batch.records_count
    if count >= _MANY and base >= first_offset:
        columns = read_columns(buffer, at, count)
        if columns is not None:
            times = [since_ms + since for since in columns.since_ms.tolist()]
            return RecordBlock(
                partition,
                [base + ahead for ahead in columns.ahead.tolist()],
                times if appended_ms is None else [appended_ms] * count,
                columns.keys,
                columns.values,
                [()] * count,
            )
    block = RecordBlock(partition, [], [], [], [], [])
    try:
        for _ in range(count):
            length, at = _varint(buffer, at)
            end = at + length
            since, at = _varint(buffer, at + 1)  # a byte of attributes, which has no meaning yet
            ahead, at = _varint(buffer, at)
            size, at = _varint(buffer, at)
            key, at = (None, at) if size < 0 else (buffer[at : at + size], at + size)
            size, at = _varint(buffer, at)
            value, at = (None, at) if size < 0 else (buffer[at : at + size], at + size)
            headers, at = ((), at + 1) if buffer[at] == 0 else _headers(buffer, at)
            if at != end:
                raise CorruptRecordError(f"record {base + ahead} does not end where it says")
            if base + ahead >= first_offset:
                block.offsets.append(base + ahead)
                block.timestamps_ms.append(since_ms + since if appended_ms is None else appended_ms)
                block.keys.append(key)
                block.values.append(value)
                block.headers.append(headers)
        if at != len(buffer):
            raise CorruptRecordError(f"the batch at offset {base} goes on after its last record")
    except (IndexError, ValueError) as exc:
        raise CorruptRecordError(f"the batch at offset {base} ends within a record") from exc
    return block


def _headers(buffer: bytes, at: int) -> tuple[Headers, int]:
    """A record's headers, and where they end."""
    count, at = _varint(buffer, at)
    if count < 0:
        raise CorruptRecordError(f"a record has {count} headers")
    found: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = _varint(buffer, at)
        if size < 0:
            raise CorruptRecordError("a header has no name")
        name, at = buffer[at : at + size].decode(errors="backslashreplace"), at + size
        size, at = _varint(buffer, at)
        value, at = (None, at) if size < 0 else (buffer[at : at + size], at + size)
        found.append((name, value))
    return tuple(found), at


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """A number of varying length and where it ends; most have one or two bytes."""
    first = buffer[at]
    if first < _TWO_BYTES:
        return (first >> 1) ^ -(first & 1), at + 1
    second = buffer[at + 1]
    if second < _TWO_BYTES:
        raw = (first & 0x7F) | (second << 7)
        return (raw >> 1) ^ -(raw & 1), at + 2
    found: tuple[int, int] = decode_varint(buffer, at)
    return found
