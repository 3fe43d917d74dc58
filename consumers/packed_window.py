"""Windows as packed bytes, so that millions of them fit in memory.

A packed window is the erasure time (int64, ms) followed by its clicks, oldest first, each a
timestamp (int64, ms) and an item code (uint32), little-endian: 8 + 12 L bytes. Item codes are
given by this process's `ItemCodes` and mean nothing outside it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoder.window import NEVER, Window, merge

_ERASED: Final = struct.Struct("<q")
_CLICK: Final = struct.Struct("<qI")
_FIRST: Final = _ERASED.size
CLICK_DTYPE: Final = np.dtype([("timestamp_ms", "<i8"), ("code", "<u4")])

EMPTY: Final = _ERASED.pack(NEVER)
"""The packed window of a user of whom nothing is known."""


class ItemCodes:
    """Numbers item ids as they appear, from 0; the numbers are never given twice."""

    def __init__(self) -> None:
        self._code_of: dict[bytes, int] = {}
        self._utf8: list[bytes] = []

    def __len__(self) -> int:
        return len(self._utf8)

    def code(self, item_id: str) -> int:
        """The item's code, a new one if the item is new."""
        utf8 = item_id.encode()
        code = self._code_of.get(utf8)
        if code is None:
            code = self._code_of[utf8] = len(self._utf8)
            self._utf8.append(utf8)
        return code

    def find(self, item_id: str) -> int | None:
        """The item's code; None if no window ever held it."""
        return self._code_of.get(item_id.encode())

    def codes_of(self, utf8: Sequence[bytes]) -> NDArray[np.uint32]:
        """The codes of items whose ids are given in UTF-8, new ones for those that are new.

        Raises:
            UnicodeDecodeError: one of the new ones is not UTF-8.
        """
        try:
            return np.fromiter(map(self._code_of.get, utf8), np.uint32, len(utf8))
        except TypeError:  # None: some are new
            return np.array([self.code(one.decode()) for one in utf8], np.uint32)

    def item(self, code: int) -> str:
        """The id of the item with this code."""
        return self._utf8[code].decode()

    def items(self, start: int) -> list[str]:
        """The ids with codes from `start` on, in order."""
        return [one.decode() for one in self._utf8[start:]]

    @property
    def utf8(self) -> Sequence[bytes]:
        """The ids in UTF-8, by code."""
        return self._utf8


def pack(window: Window, codes: ItemCodes) -> bytes:
    """Pack a window, numbering its items."""
    return _ERASED.pack(window.erased_at_ms) + _packed_clicks(window.clicks, codes)


def unpack(packed: bytes, codes: ItemCodes) -> Window:
    """The window that was packed."""
    (erased_at_ms,) = _ERASED.unpack_from(packed)
    return Window(_clicks(packed, _FIRST, codes), erased_at_ms)


def _packed_clicks(clicks: Iterable[tuple[int, str]], codes: ItemCodes) -> bytes:
    return b"".join([_CLICK.pack(timestamp, codes.code(item)) for timestamp, item in clicks])


def _clicks(packed: bytes, start: int, codes: ItemCodes) -> tuple[tuple[int, str], ...]:
    """The clicks from a position in the bytes on."""
    clicks = _CLICK.iter_unpack(memoryview(packed)[start:])
    return tuple([(timestamp, codes.item(code)) for timestamp, code in clicks])


def merge_clicks(
    packed: bytes,
    clicks: Iterable[tuple[int, str]],
    codes: ItemCodes,
    *,
    length: int,
    erased_at_ms: int = NEVER,
) -> bytes:
    """Merge clicks, and an erasure time, into a packed window.

    Equal to `encoder.window.merge` on the unpacked window, but touches only its end: clicks that
    are all older than the oldest new one keep their bytes.

    Returns:
        The packed window; the very same object where nothing changed.
    """
    (erased_before,) = _ERASED.unpack_from(packed)
    if erased_at_ms > erased_before:
        before = unpack(packed, codes)
        return pack(merge(before, Window(tuple(clicks), erased_at_ms), length=length), codes)
    fresh = [click for click in clicks if click[0] > erased_before]
    if not fresh:
        return newest(packed, length)
    if len(fresh) > 1:
        fresh = sorted(set(fresh))
    # Those before `end` are older than every new click; those after it may have to move.
    end = len(packed)
    while end > _FIRST and _CLICK.unpack_from(packed, end - _CLICK.size)[0] >= fresh[0][0]:
        end -= _CLICK.size
    if end < len(packed):
        fresh = sorted({*fresh, *_clicks(packed, end, codes)})
    after = newest(packed[:end] + _packed_clicks(fresh[-length:], codes), length)
    return packed if after == packed else after


def newest(packed: bytes, length: int) -> bytes:
    """Without the oldest clicks beyond so many."""
    surplus = (len(packed) - _FIRST) - length * _CLICK.size
    return packed[:_FIRST] + packed[_FIRST + surplus :] if surplus > 0 else packed


def newest_ms(packed: bytes) -> int:
    """When the newest click was, in ms; NEVER without any."""
    return _CLICK.unpack_from(packed, len(packed) - _CLICK.size)[0] if _any(packed) else NEVER


def was_erased(packed: bytes) -> bool:
    """Whether the user was erased, as far as that is remembered."""
    return not packed.startswith(EMPTY)


def without_old_erasure(packed: bytes, *, before_ms: int) -> bytes:
    """Drop the erasure time where it is older than `before_ms`; else the very same object."""
    (erased_at_ms,) = _ERASED.unpack_from(packed)
    if NEVER < erased_at_ms < before_ms:
        return EMPTY + packed[_FIRST:]
    return packed


def _any(packed: bytes) -> bool:
    return len(packed) > _FIRST


def click_columns(windows: Sequence[bytes]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """All windows' clicks in one array.

    Returns:
        The clicks (`CLICK_DTYPE`), window after window, and the number of clicks of each window,
        int64 (B,).
    """
    joined = b"".join([window[_FIRST:] for window in windows])
    sizes = np.fromiter(map(len, windows), dtype=np.int64, count=len(windows))
    return np.frombuffer(joined, dtype=CLICK_DTYPE), (sizes - _FIRST) // _CLICK.size
