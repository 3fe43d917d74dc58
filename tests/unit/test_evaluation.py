"""Recall, hit rate and NDCG, by hand and against the plain definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.click_log import ClickLog
from training.evaluation import (
    HeldOut,
    evaluate,
    evaluate_popularity,
    measures,
    search,
)


def test_measures_by_hand() -> None:
    """Two users: one has two of three targets found at places 1 and 21, the other nothing."""
    found = np.arange(1, 51)[None, :].repeat(2, axis=0)
    metrics = measures(found, [frozenset({1, 21, 99}), frozenset({77})])
    assert metrics["recall_at_20"] == pytest.approx((1 / 3 + 0) / 2)
    assert metrics["recall_at_50"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["hit_rate_at_20"] == metrics["hit_rate_at_50"] == 0.5
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics["ndcg_at_20"] == pytest.approx(1 / ideal / 2)
    assert metrics["ndcg_at_50"] == pytest.approx((1 + 1 / math.log2(22)) / ideal / 2)


def test_the_ideal_gain_is_over_as_many_as_can_be_shown() -> None:
    """With more targets than places, a list of nothing but targets has NDCG 1."""
    found = np.arange(1, 51)[None, :]
    metrics = measures(found, [frozenset(range(1, 101))])
    assert metrics["ndcg_at_20"] == metrics["ndcg_at_50"] == pytest.approx(1)
    assert metrics["recall_at_50"] == pytest.approx(0.5)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 3), st.integers(1, 15))
def test_the_search_is_exact(seed: int, items: int, slots: int, top: int) -> None:
    """It agrees with sorting all items by their best product with any interest in use."""
    rng = np.random.default_rng(seed)
    interests = rng.normal(size=(5, slots, 4)).astype(np.float32)
    counts = rng.integers(0, slots + 1, 5)
    table = rng.normal(size=(items + 1, 4)).astype(np.float32)
    found = search(interests, counts, table, top)
    for user in range(5):
        if counts[user] == 0:
            assert (found[user] == -1).all()
            continue
        best = {
            row: max(float(interests[user, k] @ table[row]) for k in range(counts[user]))
            for row in range(1, items + 1)
        }
        ranked = sorted(best, key=best.__getitem__, reverse=True)[:top]
        np.testing.assert_allclose(
            [best[row] for row in found[user]], [best[row] for row in ranked], rtol=1e-5, atol=1e-6
        )
        assert len(set(found[user].tolist())) == len(ranked)


def test_held_out_users_have_a_past_and_a_future() -> None:
    """Others are not measured on; distinct items count once, and unknown ones count as missed."""
    past = ClickLog.from_arrays(
        ["both", "both", "gone", "rare"], ["x", "y", "x", "dropped"], [1, 2, 1, 1]
    )
    future = ClickLog.from_arrays(
        ["both", "both", "both", "new", "rare"], ["y", "y", "novel", "x", "x"], [5, 6, 7, 5, 5]
    )
    held_out = HeldOut.split(past, future, ["x", "y"], window_length=5)
    assert held_out.windows.tolist() == [[1, 2]]
    (targets,) = held_out.targets
    assert len(targets) == 2
    assert 2 in targets
    assert min(targets) < 0
    found = np.array([[1, 2]])
    assert measures(found, held_out.targets)["recall_at_20"] == 0.5


def test_popularity_recommends_the_most_clicked() -> None:
    """The same items to everyone, in order of their clicks."""
    held_out = HeldOut(np.ones((2, 1), np.int64), [frozenset({60}), frozenset({1})])
    metrics = evaluate_popularity(np.arange(1, 61), held_out)  # row 60 leads, row 1 is last
    assert metrics["ndcg_at_20"] == 0.5
    assert metrics["recall_at_50"] == 0.5


def test_an_encoder_is_measured_on_its_windows() -> None:
    """An encoder that returns the user's target finds it first."""
    table = np.vstack([np.zeros(3), np.eye(3)]).astype(np.float32)
    held_out = HeldOut(np.array([[1], [2]]), [frozenset({2}), frozenset({3})])

    def encode(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return table[windows + 1], np.ones(len(windows), np.int64)

    assert evaluate(encode, table, held_out)["ndcg_at_20"] == 1
