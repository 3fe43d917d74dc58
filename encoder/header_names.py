"""Lets kafka-python read records whose header names are not UTF-8.

Producers in C and Go can write such names. kafka-python raises on the first, takes its record for
corrupt, and never gets past it: one record would end the partition.
"""

from __future__ import annotations

from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch


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

    def _read_msg(self) -> Any:
        start = self._pos
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


def accept_any_header_name() -> None:
    """Have every consumer of this process read such records; harmless to repeat."""
    memory_records.DefaultRecordBatch = _TolerantBatch
