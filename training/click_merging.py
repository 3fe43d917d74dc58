"""Which files of a cache of clicks had better be one: a run of the trainer adds one, however small.

Pure: says what to merge; `training.click_cache` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from training.click_manifest import Part

SAVED: Final = 100
"""Fewer files that merging must make; below that it is not worth writing them again."""
_SPANS: Final = 64

Ranges = Mapping[int, tuple[int, int]]


def to_merge(parts: Sequence[Part], *, most_clicks: int, saved: int = SAVED) -> list[list[Part]]:
    """Runs of parts to be merged into one each.

    A run has no more clicks than a part may have, since that is what is held in memory. It spans no
    more than a 64th of the time that the cache does, since a part goes as a whole, and its oldest
    clicks are kept until its newest are too old. It spans the time from the newest click of the
    part before it: its own oldest says nothing, as any part may have a late one. No other part lies
    between the offsets of a run: they could not be read again without it.

    Args:
        parts: of a cache, in the order in which they were read but for those that were damaged.
        most_clicks: of a part.
        saved: how many files fewer there must be for anything to be merged.

    Returns:
        Of two parts or more each, in the order of `parts`; none where too little would be saved.
    """
    if len(parts) <= saved:
        return []
    times_ms = [part.newest_ms for part in parts]
    most_ms = (max(times_ms) - min(times_ms)) // _SPANS
    mended = _out_of_order(parts)
    runs: list[list[Part]] = []
    run: list[Part] = []
    since_ms = parts[0].oldest_ms
    for number, part in enumerate(parts):
        fits = (
            part not in mended
            and part.newest_ms - since_ms <= most_ms
            and sum(one.rows for one in run) + part.rows <= most_clicks
            and not any(_overlap(joined_ranges([*run, part]), one.ranges) for one in mended)
        )
        if run and not fits:
            runs.append(run)
            run, since_ms = [], times_ms[number - 1]
        run.append(part)
    runs = [one for one in [*runs, run] if len(one) > 1 and one[0] not in mended]
    return runs if sum(len(one) - 1 for one in runs) >= saved else []


def joined_ranges(parts: Sequence[Part]) -> dict[int, tuple[int, int]]:
    """The offsets that parts reach over together, by partition."""
    joined: dict[int, tuple[int, int]] = {}
    for part in parts:
        for partition, (first, end) in part.ranges.items():
            before = joined.get(partition, (first, end))
            joined[partition] = min(first, before[0]), max(end, before[1])
    return joined


def _out_of_order(parts: Sequence[Part]) -> list[Part]:
    """Parts that begin before the end of one that comes before them; the others are in order."""
    found: list[Part] = []
    ends: dict[int, int] = {}
    for part in parts:
        if any(first < ends.get(partition, 0) for partition, (first, _) in part.ranges.items()):
            found.append(part)
            continue
        ends.update({partition: end for partition, (_, end) in part.ranges.items()})
    return found


def _overlap(one: Ranges, other: Ranges) -> bool:
    return any(
        first < other[partition][1] and other[partition][0] < end
        for partition, (first, end) in one.items()
        if partition in other
    )
