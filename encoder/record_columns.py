"""Many records of a batch read at once, where all of them are sound and none has headers.

A record is a row of numbers of varying length with bytes between them. Where the next one begins is
known from its length alone; after that, the same number of all records is read in one step.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MORE: Final = 0x80  # in a byte of a number after which there is another one
_TOO_LONG: Final = 9  # bytes of a number that is left to be read by itself

Numbers = NDArray[np.int64]


class RecordColumns(NamedTuple):
    """Records in their order.

    Attributes:
        since_ms: int64 (n,), milliseconds after the batch's first timestamp.
        ahead: int64 (n,), how far the offset is after the batch's first one.
        keys: n keys; None where there is none.
        values: n values; None for a tombstone.
    """

    since_ms: Numbers
    ahead: Numbers
    keys: list[bytes | None]
    values: list[bytes | None]


class _Odd(Exception):  # noqa: N818  never seen outside
    """Something that has to be looked at record by record."""


def read_columns(buffer: bytes, at: int, count: int) -> RecordColumns | None:
    """Read records that reach from a place to the end of a buffer.

    Args:
        buffer: their bytes.
        at: where the first one begins.
        count: how many there are, one at least.

    Returns:
        None where anything is out of the ordinary, be it right or wrong.
    """
    raw = np.frombuffer(buffer, np.uint8)
    try:
        begins, ends = _bounds(buffer, at, count)
        since_ms, places = _numbers(raw, begins + 1)  # after attributes, which have no meaning yet
        ahead, places = _numbers(raw, places)
        keys, places = _cells(buffer, *_numbers(raw, places))
        values, places = _cells(buffer, *_numbers(raw, places))
        headers, places = _numbers(raw, places)
    except (IndexError, _Odd):
        return None
    if headers.any() or ahead.min() < 0 or not np.array_equal(places, ends):
        return None
    return RecordColumns(since_ms, ahead, keys, values)


def _bounds(buffer: bytes, at: int, count: int) -> tuple[Numbers, Numbers]:
    """Where each record's bytes begin, after its length, and where they end."""
    begins, ends = [], []
    for _ in range(count):
        first = buffer[at]
        if first < _MORE:
            number, at = first, at + 1
        elif (second := buffer[at + 1]) < _MORE:
            number, at = first & 0x7F | second << 7, at + 2
        else:
            raise _Odd  # a record of 8 kB or more
        if number & 1:
            raise _Odd  # its length is negative
        begins.append(at)
        at += number >> 1
        ends.append(at)
    if at != len(buffer):
        raise _Odd
    return np.array(begins), np.array(ends)


def _numbers(raw: NDArray[np.uint8], places: Numbers) -> tuple[Numbers, Numbers]:
    """The numbers at these places, and where each of them ends."""
    byte = raw[places].astype(np.int64)
    found, places = byte & 0x7F, places + 1
    longer = byte >= _MORE
    for size in range(1, _TOO_LONG):
        if not longer.any():
            return (found >> 1) ^ -(found & 1), places
        byte = np.where(longer, raw[np.where(longer, places, 0)], 0).astype(np.int64)
        found |= (byte & 0x7F) << 7 * size
        places = places + longer
        longer = byte >= _MORE
    raise _Odd


def _cells(buffer: bytes, sizes: Numbers, places: Numbers) -> tuple[list[bytes | None], Numbers]:
    """The bytes of so many from each place on, None where the size is negative."""
    if int(sizes.max()) > len(buffer):
        raise _Odd  # no sum of these numbers may be too large for them
    ends = places + np.maximum(sizes, 0)
    bounds = zip(places.tolist(), ends.tolist(), strict=True)
    cells: list[bytes | None] = [buffer[start:end] for start, end in bounds]
    for none in np.flatnonzero(sizes < 0).tolist():
        cells[none] = None
    return cells, ends
