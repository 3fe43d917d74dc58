"""A user's behaviour window, as a function of the set of that user's clicks.

A window holds the L most recent distinct (timestamp, item) clicks after the user's erasure time,
ordered by timestamp and then item. Taking the top L of a union is commutative, associative and
idempotent, and the erasure time only grows, so replayed, duplicated and late clicks cannot change
the outcome: delivery at least once has the effect of exactly once.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

NEVER: Final = 0
"""The erasure time of a user who was never erased. No accepted click is this old."""

WIRE_VERSION: Final = 1
WIRE_HEADER: Final = struct.Struct("<BqH")
"""Of a window's wire form: version, erasure time in ms, number of clicks."""


class CorruptWindow(ValueError):  # noqa: N818
    """Bytes that no version of this program wrote as a window."""


@dataclass(frozen=True, slots=True)
class Window:
    """Clicks as (timestamp in ms, item id), oldest first, all after `erased_at_ms`."""

    clicks: tuple[tuple[int, str], ...] = ()
    erased_at_ms: int = NEVER

    @property
    def empty(self) -> bool:
        """Whether nothing at all is known of the user, not even an erasure."""
        return not self.clicks and self.erased_at_ms == NEVER


def window_of(
    clicks: Iterable[tuple[int, str]], *, length: int, erased_at_ms: int = NEVER
) -> Window:
    """The window that a set of clicks makes. This is the definition; all else must agree with it.

    Args:
        clicks: (timestamp in ms, item id), in any order, repeated at will.
        length: L, the most clicks a window holds; at least 1.
        erased_at_ms: clicks at or before this time are forgotten.
    """
    kept = sorted({click for click in clicks if click[0] > erased_at_ms})
    return Window(tuple(kept[-length:]), erased_at_ms)


def merge(one: Window, other: Window, *, length: int) -> Window:
    """The window of both windows' clicks after the later of both erasures."""
    return window_of(
        one.clicks + other.clicks,
        length=length,
        erased_at_ms=max(one.erased_at_ms, other.erased_at_ms),
    )


def to_wire(window: Window) -> bytes:
    """A window as the value of a record on the windows topic.

    Little-endian: version (uint8), erasure time (int64, ms), number of clicks n (uint16),
    n timestamps (int64, ms), n item id lengths (uint16, bytes), the item ids in UTF-8.
    """
    n = len(window.clicks)
    items = [item.encode() for _, item in window.clicks]
    return b"".join(
        (
            WIRE_HEADER.pack(WIRE_VERSION, window.erased_at_ms, n),
            struct.pack(f"<{n}q", *(timestamp for timestamp, _ in window.clicks)),
            struct.pack(f"<{n}H", *map(len, items)),
            *items,
        )
    )


def from_wire(value: bytes) -> Window:
    """The window that `to_wire` wrote.

    Raises:
        CorruptWindow: the bytes are not such a window.
    """
    try:
        version, erased_at_ms, n = WIRE_HEADER.unpack_from(value)
        if version != WIRE_VERSION:
            raise CorruptWindow(f"version {version}, this program reads {WIRE_VERSION}")
        timestamps = struct.unpack_from(f"<{n}q", value, WIRE_HEADER.size)
        lengths = struct.unpack_from(f"<{n}H", value, WIRE_HEADER.size + 8 * n)
        end = WIRE_HEADER.size + 10 * n
        items = []
        for size in lengths:
            items.append(value[end : end + size].decode())
            end += size
    except (struct.error, UnicodeDecodeError) as exc:
        raise CorruptWindow(str(exc)) from exc
    if end != len(value):
        raise CorruptWindow(f"{len(value)} bytes, expected {end}")
    clicks = tuple(zip(timestamps, items, strict=True))
    if any(a >= b for a, b in itertools.pairwise(clicks)):
        raise CorruptWindow("clicks out of order")
    if clicks and clicks[0][0] <= erased_at_ms:
        raise CorruptWindow("a click from before the erasure")
    return Window(clicks, erased_at_ms)
