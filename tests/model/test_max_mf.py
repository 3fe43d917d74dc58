"""MaxMF finds the tastes of users whom it has not been trained on."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.tastes import GROUPS, ITEMS_PER_GROUP, planted_log, shuffled
from training.click_log import ClickLog
from training.evaluation import HeldOut, evaluate
from training.max_mf import MaxMf, bounded
from training.preset import MAX_MF
from training.sequences import Sequences

TRAINED, CLICKS = 300, 60
CONFIG = dataclasses.replace(
    MAX_MF, width=16, interests=2, negatives=128, epochs=20.0, learning_rate=0.02, batch_size=512
)


def recall(log: ClickLog) -> float:
    """Recall at 20 of the later clicks of users not trained on, from their first 20."""
    every = Sequences.from_log(log, log.item_ids)
    cut = every.starts[TRAINED]
    learned = Sequences(every.rows[:cut], every.starts[: TRAINED + 1])
    model = MaxMf(learned, len(log.item_ids), CONFIG)
    lines = every.rows[cut:].reshape(-1, CLICKS).astype(np.int64)
    windows, targets = lines[:, :20], [frozenset(line[20:].tolist()) for line in lines]
    held_out = HeldOut(windows, targets)
    return evaluate(model.encode, model.table, held_out)["recall_at_20"]


def test_planted_tastes_are_found() -> None:
    """Of a user's 30 items, 20 can be shown at most."""
    assert recall(planted_log(clicks=CLICKS)) > 0.5


def test_nothing_is_found_where_nothing_is() -> None:
    """Shuffled clicks stay at chance."""
    chance = 20 / (GROUPS * ITEMS_PER_GROUP)
    assert recall(shuffled(planted_log(clicks=CLICKS))) == pytest.approx(chance, abs=0.02)


def test_a_user_without_clicks_has_no_vector() -> None:
    """And the same seed gives the same vectors to the others."""
    every = Sequences.from_log(planted_log(users=40, clicks=10), planted_log().item_ids)
    model = MaxMf(every, 300, dataclasses.replace(CONFIG, epochs=0.5))
    windows = every.last_windows(5)[:3]
    windows[1] = 0
    vectors, counts = model.encode(windows)
    assert counts.tolist() == [2, 0, 2]
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(model.encode(windows)[0], vectors)
    assert not model.table[0].any()


def test_vectors_are_shortened_only() -> None:
    """To length 1, in the same direction; shorter ones stay."""
    found = bounded(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
    assert found.flatten().tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4, 0, 0])
