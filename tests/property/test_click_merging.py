"""Which parts of a cache of clicks are merged: few files, and all that a part promises is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from training.click_manifest import Part
from training.click_merging import joined_ranges, to_merge

MOST = 100


@st.composite
def caches(draw: st.DrawFn) -> list[Part]:
    """Parts as runs of the trainer leave them; some were damaged, and read again."""
    ends = [0, 0, 0]
    parts: list[Part] = []
    at_ms = 0
    for number in range(1, draw(st.integers(1, 25)) + 1):
        at_ms += draw(st.sampled_from((0, 1, 1, 2, 50)))
        ranges = {}
        for partition in draw(st.sets(st.integers(0, 2), min_size=1)):
            ends[partition] += draw(st.integers(0, 2))  # records that are no clicks, or too old
            first, ends[partition] = ends[partition], ends[partition] + draw(st.integers(1, 9))
            ranges[partition] = first, ends[partition]
        parts.append(
            Part(
                file=f"part_{number:08}.parquet",
                rows=draw(st.sampled_from((1, 1, 5, 30, 100))),
                oldest_ms=0,
                newest_ms=at_ms,
                sha256="",
                ranges=ranges,
            )
        )
    if draw(st.booleans()):
        parts.append(parts.pop(draw(st.integers(0, len(parts) - 1))))
    return parts


@given(caches())
def test_runs_are_bounded_and_nothing_lies_between(parts: list[Part]) -> None:
    """In clicks, in time, and in offsets: none of another part is among a run's."""
    for run in to_merge(parts, most_clicks=MOST, saved=1):
        assert len(run) > 1
        place = parts.index(run[0])
        assert parts[place : place + len(run)] == run
        assert sum(part.rows for part in run) <= MOST
        since_ms = parts[place - 1].newest_ms if place else run[0].oldest_ms
        whole = max(p.newest_ms for p in parts) - min(p.newest_ms for p in parts)
        assert all(64 * (part.newest_ms - since_ms) <= whole for part in run[1:])
        for partition, (first, end) in joined_ranges(run).items():
            own = [part.ranges[partition] for part in run if partition in part.ranges]
            assert (first, end) == (min(a for a, _ in own), max(b for _, b in own))
            for other in parts:
                if other not in run and partition in other.ranges:
                    assert other.ranges[partition][1] <= first or other.ranges[partition][0] >= end


@given(caches(), st.integers(1, 30))
def test_little_is_not_worth_it(parts: list[Part], saved: int) -> None:
    """Either so many files fewer, or nothing is merged."""
    fewer = sum(len(run) - 1 for run in to_merge(parts, most_clicks=MOST, saved=saved))
    assert fewer == 0 or fewer >= saved
    most = sum(len(run) - 1 for run in to_merge(parts, most_clicks=MOST, saved=1))
    assert fewer == (most if most >= saved and len(parts) > saved else 0)


def test_a_year_of_runs_is_a_few_hundred_files() -> None:
    """Four a day; each time enough has gathered it is merged, and no part spans a 62nd of it."""
    parts: list[Part] = []
    most = 0
    for run in range(1, 4 * 365 + 1):
        newest_ms = run * 6 * 3_600_000
        parts.append(one_of(run, newest_ms - 6 * 3_600_000, newest_ms))
        for merged in to_merge(parts, most_clicks=1_000_000):
            place = parts.index(merged[0])
            whole = one_of(run, merged[0].oldest_ms, merged[-1].newest_ms).model_copy(
                update={"ranges": joined_ranges(merged)}
            )
            parts[place : place + len(merged)] = [whole]
        most = max(most, len(parts))
    assert most < 300
    assert sum(end - first for part in parts for first, end in part.ranges.values()) == 4 * 365
    assert 62 * max(part.newest_ms - part.oldest_ms for part in parts) < 365 * 86_400_000


def one_of(run: int, oldest_ms: int, newest_ms: int) -> Part:
    return Part(
        file=f"part_{run:08}.parquet",
        rows=1000,
        oldest_ms=oldest_ms,
        newest_ms=newest_ms,
        sha256="",
        ranges={0: (run - 1, run)},
    )
