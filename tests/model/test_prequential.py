"""Predict, then learn: what is known before a click, and what counts as found."""

import numpy as np
import pytest

from training.click_log import ClickLog
from training.prequential import (
    as_markdown,
    evaluate,
    own_history_first,
    recalls,
    recent_popularity,
)
from training.preset import TrainingConfig
from training.replay import Replay
from training.sequences import Sequences

DAY = 86_400_000

# u's basket of day 8 has two clicks, one of them on what u had on day 1; w and `new` come later.
CLICKS = [
    ("u", "a", 1),
    ("v", "b", 2),
    ("u", "c", 3),
    ("v", "a", 4),
    ("v", "c", 5),
    ("v", "b", 6),
    ("u", "b", 7),
    ("v", "d", 7.5),
    ("u", "a", 8),
    ("u", "d", 8),
    ("w", "new", 9),
    ("w", "a", 10),
]


@pytest.fixture
def log() -> ClickLog:
    users, items, days = zip(*CLICKS, strict=True)
    return ClickLog.from_arrays(users, items, [int(day * DAY) for day in days])


@pytest.fixture
def replay(log: ClickLog) -> Replay:
    return Replay.of(log, trained_share=8 / 12)


def names(log: ClickLog, codes: np.ndarray) -> list[str]:
    return [log.item_ids[code] for code in codes]


def test_moments_are_those_after_the_split_in_order(replay: Replay) -> None:
    """Clicks of one user at one time are one moment."""
    assert replay.split_ms == 8 * DAY
    assert (replay.times // DAY).tolist() == [8, 9, 10]
    assert (replay.ends - replay.begins).tolist() == [2, 1, 1]
    assert len(replay.past) == 8


def test_a_window_ends_before_its_moment(replay: Replay) -> None:
    """Neither the clicks of the moment itself are in it, nor any that were not yet known."""
    rows = Sequences.from_log(replay.log, replay.log.item_ids)

    def window(instants: np.ndarray, moment: int) -> list[str]:
        known = replay.known_at(instants)
        found = rows.windows_before(known, 2)[moment]
        return names(replay.log, found[found > 0] - 1)

    assert window(replay.times, 0) == ["c", "b"]  # the newest two of three
    assert window(replay.times, 1) == []
    assert window(replay.times, 2) == ["new"]
    assert window(np.full(3, 7 * DAY), 0) == ["a", "c"]
    assert window(np.full(3, 9 * DAY), 2) == []


def test_popularity_is_of_the_days_before(replay: Replay) -> None:
    """Clicks leave when they are too old, and the moment's own do not count."""
    found = recent_popularity(replay, days=2)
    assert names(replay.log, found[0])[:2] == ["b", "d"]
    assert set(names(replay.log, found[1])[:3]) == {"b", "a", "d"}


def test_own_items_come_first(replay: Replay) -> None:
    """The most often clicked, of those the newest, and no item twice."""
    found = own_history_first(replay, np.tile(np.arange(4), (3, 1)))
    assert names(replay.log, found[0]) == ["b", "c", "a", "d"]
    assert names(replay.log, found[1]) == ["a", "b", "c", "d"]
    assert names(replay.log, found[2]) == ["new", "a", "b", "c"]


def test_recall_is_of_clicks_and_of_each_kind(replay: Replay) -> None:
    """All four clicks count; those on new items and of new users also by themselves."""
    a = replay.log.item_ids.index("a")
    found = recalls(replay, {"a": np.full((3, 50), a)})
    assert found.table["a"]["all, R@20"] == 2 / 4
    assert found.table["a"]["had before, R@50"] == 1
    assert found.table["a"]["new users, R@20"] == 1 / 2
    assert found.table["a"]["new items, R@20"] == 0
    assert found.shares == {
        "all": 1,
        "had before": 1 / 4,
        "not had before": 3 / 4,
        "new users": 2 / 4,
        "new items": 1 / 4,
    }
    assert "| a | 50.0 / 50.0 |" in as_markdown(found)


def test_interests_that_see_each_click_know_what_comes_next() -> None:
    """Users who go round and round the same items: what was clicked last says what is next."""
    rng = np.random.default_rng(0)
    clicks = []
    for user in range(60):
        start = rng.integers(0, 200)
        clicks += [
            (f"u{user}", f"i{(start + step) % 200:03d}", user + step * DAY) for step in range(40)
        ]
    users, items, times = zip(*clicks, strict=True)
    config = TrainingConfig(
        width=16, interests=1, epochs=20, batch_size=64, window_length=3, targets=1, horizon=1
    )
    found = evaluate(ClickLog.from_arrays(users, items, times), config).table
    fresh = found["interests, per click"]["all, R@20"]
    assert fresh > 0.8
    assert found["interests, nightly"]["all, R@20"] == pytest.approx(fresh, abs=0.1)
    assert found["interests, frozen at release"]["all, R@20"] < fresh - 0.2
    assert found["popularity of 7 days"]["all, R@20"] < fresh - 0.2
