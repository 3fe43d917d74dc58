"""What is measured of new items is measured on items that the model knows nothing of."""

import numpy as np
import pytest

from tests.tastes import group_of, planted_log
from training.click_log import ClickLog
from training.item_fields import Item
from training.new_items import NewItems, baselines, run
from training.preset import TrainingConfig

CONFIG = TrainingConfig(
    window_length=20,
    width=16,
    interests=3,
    epochs=3.0,
    batch_size=256,
    negatives=128,
    learning_rate=0.02,
    fades=(),
)


@pytest.fixture(scope="module")
def log() -> ClickLog:
    """Planted tastes, and an item that comes up at the end."""
    planted = planted_log()
    return ClickLog.from_arrays(
        [planted.user_ids[user] for user in planted.users] + ["user-0", "user-1"],
        [planted.item_ids[item] for item in planted.items] + ["g0-new", "g0-new"],
        [*planted.timestamps_ms.tolist(), 10**9, 10**9],
    )


@pytest.fixture(scope="module")
def data(log: ClickLog) -> NewItems:
    return NewItems.split(log, window_length=20)


def test_no_click_on_a_new_item_is_learned_from_or_shown(log: ClickLog, data: NewItems) -> None:
    """A tenth of the items, and those that come later, are in nobody's window or sequence."""
    known = len(data.known)
    assert data.held == 30
    assert data.new[data.held :] == ["g0-new"]
    assert sorted(data.known + data.new) == log.item_ids
    assert data.sequences.rows.max() == known
    assert data.users.windows.max() <= known
    assert (data.sequences.rows == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert data.rows("held out").tolist() == list(range(known + 1, known + 31))
    assert data.rows("later").tolist() == [known + 31]


def test_targets_are_of_the_rows_asked_for(data: NewItems) -> None:
    """With the users who clicked them."""
    users, targets = data.on(data.rows("later"))
    assert len(users) == 2
    assert targets == [frozenset(data.rows("later").tolist())] * 2
    assert all(data.users.targets[user] & targets[0] for user in users)


def test_baselines_know_what_they_say(data: NewItems) -> None:
    """Chance is cuts over candidates; popularity beforehand has nothing on what came later."""
    found = baselines(data)
    assert found["chance"]["held out, alone, recall_at_20"] == pytest.approx(20 / 30)
    assert found["chance"]["held out, all, recall_at_50"] == pytest.approx(50 / 301)
    before = found["popularity, had they been sold before"]
    assert any(name.startswith("held out") for name in before)
    assert not any(name.startswith("later") for name in before)


@pytest.mark.parametrize("told", [True, False])
def test_fields_find_new_items_if_they_say_something(data: NewItems, told: bool) -> None:
    """Titles that name the taste do; titles dealt out at random leave recall at chance."""
    groups = [group_of(item) for item in data.known + data.new]
    if not told:
        groups = np.random.default_rng(0).permutation(groups).tolist()
    items: list[Item] = [{"title": f"taste{group}", "price": 1.0} for group in groups]
    found = run(data, items, CONFIG)["held out, alone, recall_at_20"]
    if told:
        assert found > 0.9
    else:
        assert found == pytest.approx(20 / 30, abs=0.1)
