"""Whether a release may go into use."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from encoder.release import Release
from tests.small_release import make_small_release
from training.click_log import ClickLog
from training.gate import ENOUGH_USERS, judge

ITEMS = 40
DAY_MS = 86_400_000


def clicks_on_popular_items(users: int = 300) -> ClickLog:
    """Everyone clicks the same few items, now and later: popularity is right."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"item-{1 + rng.integers(5)}", day * DAY_MS + user)
        for user in range(users)
        for day in range(20)
    ]
    return ClickLog.from_arrays(*map(list, zip(*rows, strict=True)))


def untrained(folder: Path, name: str) -> Release:
    """As if it had been trained on all but the last two days."""
    return until(make_small_release(folder / name, items=400, name=name), 18 * DAY_MS - 1)


def until(release: Release, until_ms: int) -> Release:
    training = release.manifest.training.model_copy(update={"until_ms": until_ms})
    return dataclasses.replace(
        release, manifest=release.manifest.model_copy(update={"training": training})
    )


def test_a_release_that_popularity_beats_is_refused(tmp_path: Path) -> None:
    """With enough users; the report says by how much, and how sure that is."""
    release = untrained(tmp_path, "random")
    shifted = dataclasses.replace(
        release, item_ids=[f"item-{(row * 7) % 400}" for row in range(400)]
    )
    report = judge(shifted, clicks_on_popular_items(), margin=0.01)
    assert report.users > ENOUGH_USERS
    assert not report.passed
    assert any("behind popularity" in reason for reason in report.reasons)
    popularity = report.comparisons[0]
    assert popularity.recall == 1.0
    assert popularity.low <= popularity.difference <= popularity.high < 0
    assert "popularity 100.0 %" in str(report)


def test_a_margin_and_chance_are_no_reason(tmp_path: Path) -> None:
    """The same release passes where the margin is wide, or users too few to be sure."""
    release = untrained(tmp_path, "random")
    assert judge(release, clicks_on_popular_items(), margin=1.0).passed
    one = ClickLog.from_arrays(["u", "u", "u"], ["item-1", "item-2", "item-3"], [0, 1, 2])
    report = judge(until(release, 1), one, margin=0.0)
    assert report.users == 1
    assert "which says little" in str(report)


def test_a_release_is_no_worse_than_itself(tmp_path: Path) -> None:
    """The release in use is compared on the same users, on what it has not seen."""
    release, in_use = untrained(tmp_path, "candidate"), untrained(tmp_path, "before")
    report = judge(release, clicks_on_popular_items(), margin=0.0, in_use=in_use)
    (itself, *_) = report.comparisons
    assert itself.other == "release before"
    assert itself.difference == itself.low == itself.high == 0
    assert not itself.behind
    seen = until(in_use, 10**15)
    assert judge(release, clicks_on_popular_items(), margin=0.0, in_use=seen).users == 0


def test_interests_that_collapsed_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    """Whatever recall says."""
    release = untrained(tmp_path, "collapsed")
    same = np.tile(release.items[1], (len(release.items), 1))
    same[0] = 0
    collapsed = dataclasses.replace(release, items=same)
    report = judge(collapsed, clicks_on_popular_items(), margin=1.0)
    assert ["collapsed into one" in reason for reason in report.reasons] == [True]
    broken = np.array(release.items)
    broken[3, 0] = np.nan
    report = judge(
        dataclasses.replace(release, items=broken),
        clicks_on_popular_items(),
        margin=1.0,
    )
    assert report.reasons[0] == "item vectors are not finite"


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_report(tmp_path: Path, seed: int) -> None:
    """So that a refusal can be looked into."""
    release = untrained(tmp_path, "r")
    first, second = (
        judge(release, clicks_on_popular_items(), margin=0.01, seed=seed) for _ in range(2)
    )
    assert first == second
