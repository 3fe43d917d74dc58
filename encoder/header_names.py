"""Lets kafka-python read records whose header names are not UTF-8, and plain records faster.

Producers in C and Go can write such names. kafka-python raises on the first, takes its record for
corrupt, and never gets past it: one record would end the partition.

A record without headers is read here in half the time: a number of one byte, which most are, needs
no call. Everything else, what is wrong included, is left to kafka-python.
"""

from __future__ import annotations

from typing import Any, Final

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

_TWO_BYTES: Final = 0x80  # what the first byte of a longer number is at least


class _AnyText(bytearray):
    r"""Bytes that decode to text whatever they are: one that is not UTF-8 as `\xff`."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _AnyText(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _TolerantBatch(DefaultRecordBatch):  # type: ignore[misc]  # kafka-python is untyped
    _buffer: bytearray
    _pos: int
    _tolerant: _AnyText | None = None  # a copy of the batch, made when it is first needed
    _constants: tuple[bool, int, int, int, int] | None = None  # of all records of the batch

    def _read_msg(self) -> Any:
        start = self._pos
        if (plain := self._read_plain()) is not None:
            return plain
        try:
            return super()._read_msg()
        except UnicodeDecodeError:  # only header names are decoded there
            if self._tolerant is None:
                self._tolerant = _AnyText(self._buffer)
            strict, self._buffer, self._pos = self._buffer, self._tolerant, start
            try:
                return super()._read_msg()
            finally:
                self._buffer = strict

    def _read_plain(self) -> DefaultRecord | None:
        """The next record, if it is as most are; None where kafka-python must see to it."""
        if self._constants is None:
            self._constants = (
                self.is_control_batch,
                self.base_offset,
                self.first_timestamp,
                self.timestamp_type,
                self.max_timestamp,
            )
        control, base_offset, first_timestamp, timestamp_type, max_timestamp = self._constants
        if control:
            return None
        buffer, pos = self._buffer, self._pos
        try:
            # Numbers are zigzag varints, so that one of a single byte is even unless negative.
            if (number := buffer[pos]) < _TWO_BYTES:
                if number & 1:
                    return None
                length, pos = number >> 1, pos + 1
            else:
                length, pos = decode_varint(buffer, pos)
            end = pos + length
            if buffer[pos]:  # attributes, which are not in use
                return None
            pos += 1
            if (number := buffer[pos]) < _TWO_BYTES:
                timestamp_delta, pos = (number >> 1) ^ -(number & 1), pos + 1
            else:
                timestamp_delta, pos = decode_varint(buffer, pos)
            if (number := buffer[pos]) < _TWO_BYTES:
                offset_delta, pos = (number >> 1) ^ -(number & 1), pos + 1
            else:
                offset_delta, pos = decode_varint(buffer, pos)
            key, pos = _bytes_at(buffer, pos)
            value, pos = _bytes_at(buffer, pos)
            if buffer[pos] != 0 or pos + 1 != end:  # headers, or not as long as it says
                return None
        except (IndexError, ValueError):
            return None
        self._pos = end
        return DefaultRecord(
            length,
            base_offset + offset_delta,
            max_timestamp if timestamp_type == 1 else first_timestamp + timestamp_delta,
            timestamp_type,
            key,
            value,
            [],
        )


def _bytes_at(buffer: bytearray, pos: int) -> tuple[bytes | None, int]:
    if (number := buffer[pos]) < _TWO_BYTES:
        length, pos = (number >> 1) ^ -(number & 1), pos + 1
    else:
        length, pos = decode_varint(buffer, pos)
    if length < 0:
        return None, pos
    end = pos + length
    return bytes(buffer[pos:end]), end


def accept_any_header_name() -> None:
    """Have every consumer of this process read such records; harmless to repeat."""
    memory_records.DefaultRecordBatch = _TolerantBatch
