"""Merges the clicks of many users into their packed windows.

Most clicks are later than all that their user's window holds. Those are put behind it as they lie
in one array of all; every other user goes through `packed_window.merge_clicks`, to which the
outcome is equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from consumers.packed_window import CLICK_DTYPE, EMPTY, ItemCodes, merge_clicks, newest, newest_ms
from encoder.plain_clicks import PlainClicks
from encoder.window import NEVER


@dataclass(slots=True)
class UserEvents:
    """What happened to users of one partition, in any order.

    Attributes:
        user_ids: of each click.
        item_ids: of each click.
        timestamps_ms: of each click.
        erased_at_ms: until when a user's clicks are to be forgotten.
    """

    user_ids: list[str] = field(default_factory=list)
    item_ids: list[str] = field(default_factory=list)
    timestamps_ms: list[int] = field(default_factory=list)
    erased_at_ms: dict[str, int] = field(default_factory=dict)

    def click(self, user_id: str, item_id: str, timestamp_ms: int) -> None:
        """Add one click."""
        self.user_ids.append(user_id)
        self.item_ids.append(item_id)
        self.timestamps_ms.append(timestamp_ms)

    def click_all(self, clicks: PlainClicks) -> None:
        """Add several clicks."""
        self.user_ids += clicks.user_ids
        self.item_ids += clicks.item_ids
        self.timestamps_ms += clicks.timestamps_ms

    def erase(self, user_id: str, up_to_ms: int) -> None:
        """Add an erasure."""
        self.erased_at_ms[user_id] = max(self.erased_at_ms.get(user_id, NEVER), up_to_ms)


def merge_events(
    packed: Callable[[str], bytes], events: UserEvents, codes: ItemCodes, *, length: int
) -> dict[str, bytes]:
    """Merge events into windows.

    Args:
        packed: the window of a user.
        events: what happened.
        codes: of the items; those that are new get one.
        length: L, the most clicks a window holds.

    Returns:
        The windows that changed, by user.
    """
    places: dict[str, int] = {}
    place = np.fromiter(
        (places.setdefault(user_id, len(places)) for user_id in events.user_ids),
        np.int64,
        len(events.user_ids),
    )
    times = np.array(events.timestamps_ms, np.int64)
    order = np.lexsort((times, place))
    place, times = place[order], times[order]
    clicks = np.empty(len(order), CLICK_DTYPE)
    clicks["timestamp_ms"] = times
    clicks["code"] = codes.codes_of(list(map(str.encode, events.item_ids)))[order]
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts, len(order))[1:]
    tied = np.zeros(len(places), np.bool_)  # whose order, or whether it is one click, items decide
    tied[place[1:][(np.diff(place) == 0) & (np.diff(times) == 0)]] = True
    data, size = clicks.tobytes(), CLICK_DTYPE.itemsize
    changed: dict[str, bytes] = {}

    def merge(user_id: str, before: bytes, of_user: list[tuple[int, str]]) -> None:
        erased_at_ms = events.erased_at_ms.get(user_id, NEVER)
        after = merge_clicks(before, of_user, codes, length=length, erased_at_ms=erased_at_ms)
        if after is not before:
            changed[user_id] = after

    for user_id, odd, oldest_ms, start, end in zip(
        places, tied.tolist(), times[starts].tolist(), starts.tolist(), ends.tolist(), strict=True
    ):
        before = packed(user_id)
        if (
            odd
            or user_id in events.erased_at_ms
            or not before.startswith(EMPTY)
            or newest_ms(before) >= oldest_ms
        ):
            of_user = clicks[start:end].tolist()
            merge(user_id, before, [(at, codes.item(code)) for at, code in of_user])
        else:
            changed[user_id] = newest(before + data[start * size : end * size], length)
    for user_id in events.erased_at_ms.keys() - places.keys():
        merge(user_id, packed(user_id), [])
    return changed
