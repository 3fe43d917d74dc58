"""Windows between their wire form and their packed form, many at a time.

`encoder.window.to_wire` and `from_wire` are the definition; this is equal to them and faster,
because items are looked up once per call and not once per click.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consumers.packed_window import CLICK_DTYPE, EMPTY, ItemCodes, click_columns, pack
from encoder.window import WIRE_HEADER, WIRE_VERSION, CorruptWindow, from_wire

_ERASED: Final = struct.Struct("<q")


class CorruptAt(CorruptWindow):
    """One of several values is no window.

    Attributes:
        position: which one, from 0.
    """

    def __init__(self, position: int, why: str) -> None:
        super().__init__(why)
        self.position = position


def to_wires(packed: Sequence[bytes], codes: ItemCodes) -> list[bytes | None]:
    """Packed windows as values of the windows topic; None for empty ones."""
    clicks, counts = click_columns(packed)
    utf8 = codes.utf8
    items = [utf8[code] for code in clicks["code"].tolist()]
    timestamps = clicks["timestamp_ms"].tobytes()
    lengths = np.fromiter(map(len, items), "<u2", len(items)).tobytes()
    values: list[bytes | None] = []
    first = 0
    for window, count in zip(packed, counts.tolist(), strict=True):
        if window == EMPTY:
            values.append(None)
            continue
        end = first + count
        header = WIRE_HEADER.pack(WIRE_VERSION, _ERASED.unpack_from(window)[0], count)
        values.append(
            header
            + timestamps[8 * first : 8 * end]
            + lengths[2 * first : 2 * end]
            + b"".join(items[first:end])
        )
        first = end
    return values


def from_wires(values: Sequence[bytes], codes: ItemCodes) -> list[bytes]:
    """Values of the windows topic as packed windows.

    Raises:
        CorruptAt: one of them is no window.
    """
    packed = _from_sound_wires(values, codes)
    if packed is not None:
        return packed
    packed = []
    for position, value in enumerate(values):
        try:
            packed.append(pack(from_wire(value), codes))
        except CorruptWindow as exc:
            raise CorruptAt(position, str(exc)) from exc
    return packed


def _from_sound_wires(values: Sequence[bytes], codes: ItemCodes) -> list[bytes] | None:
    """As `from_wires`; None where anything at all is odd."""
    erased: list[int] = []
    counts: list[int] = []
    timestamps: list[bytes] = []
    lengths: list[bytes] = []
    items: list[bytes] = []
    for value in values:
        if len(value) < WIRE_HEADER.size:
            return None
        version, erased_at_ms, count = WIRE_HEADER.unpack_from(value)
        first, last = WIRE_HEADER.size + 8 * count, WIRE_HEADER.size + 10 * count
        if version != WIRE_VERSION or len(value) < last:
            return None
        erased.append(erased_at_ms)
        counts.append(count)
        timestamps.append(value[WIRE_HEADER.size : first])
        lengths.append(value[first:last])
        items.append(value[last:])
    ends = np.cumsum(np.array([0, *counts]))
    item_ends = np.cumsum(
        np.concatenate([[0], np.frombuffer(b"".join(lengths), "<u2")]), dtype=np.int32
    )
    # Whose items end where their lengths say; else some id would reach into the next window.
    if not np.array_equal(item_ends[ends], np.cumsum([0, *map(len, items)])):
        return None
    clicks = np.empty(int(ends[-1]), CLICK_DTYPE)
    clicks["timestamp_ms"] = times = np.frombuffer(b"".join(timestamps), "<i8")
    buffers = [None, pa.py_buffer(item_ends.tobytes()), pa.py_buffer(b"".join(items))]
    encoded = pa.Array.from_buffers(pa.binary(), len(clicks), buffers).dictionary_encode()
    try:
        known = codes.codes_of(_distinct(encoded))
    except UnicodeDecodeError:
        return None
    clicks["code"] = known[encoded.indices.to_numpy(zero_copy_only=False)]
    if not _in_order(times, clicks["code"], np.array(erased), ends, codes):
        return None
    data, size = clicks.tobytes(), CLICK_DTYPE.itemsize
    bounds = (ends * size).tolist()
    return [
        _ERASED.pack(erased_at_ms) + data[first:end]
        for erased_at_ms, first, end in zip(erased, bounds[:-1], bounds[1:], strict=True)
    ]


def _distinct(encoded: Any) -> list[bytes]:
    found: list[bytes] = encoded.dictionary.to_pylist()
    return found


def _in_order(
    timestamps: NDArray[np.int64],
    item_codes: NDArray[np.uint32],
    erased: NDArray[np.int64],
    ends: NDArray[np.int64],
    codes: ItemCodes,
) -> bool:
    """Whether each window's clicks are distinct, sorted, and from after its erasure."""
    some = np.diff(ends) > 0
    firsts = ends[:-1][some]
    if np.any(timestamps[firsts] <= erased[some]):
        return False
    # Few clicks but the first ones of windows are not later than the click before them.
    at = np.flatnonzero(timestamps[1:] <= timestamps[:-1]) + 1
    at = np.setdiff1d(at, firsts, assume_unique=True)
    if np.any(timestamps[at] < timestamps[at - 1]):
        return False
    return all(
        codes.utf8[one] < codes.utf8[other]
        for one, other in zip(item_codes[at - 1].tolist(), item_codes[at].tolist(), strict=True)
    )
