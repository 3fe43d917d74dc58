"""What `training.stability` reports is what moved."""

import numpy as np
import pytest

from tests.tastes import planted_log
from training.alignment import turn
from training.preset import TrainingConfig
from training.stability import aligned, as_cells, compare, movement, trained

CONFIG = TrainingConfig(
    window_length=20,
    width=16,
    interests=3,
    epochs=0.5,
    batch_size=256,
    negatives=64,
    learning_rate=0.02,
    fades=(),
    holdout=0.2,
)


def test_a_turned_release_moved_and_an_aligned_one_did_not() -> None:
    """The same model in another basis: no item, interest or slot where it was, until aligned."""
    log = planted_log(users=60)
    before, turned = trained(log, CONFIG), trained(log, CONFIG)
    square = np.random.default_rng(0).normal(size=(16, 16))
    turn(turned.model, np.linalg.qr(square)[0])
    moved = movement(before, turned, log)
    assert abs(moved["item_cosine"]) < 0.5
    assert moved["interest_cosine"] < 0.5
    assert moved["strongest_changed"] == 0  # a slot is seeded by products, which are the same
    back = movement(before, aligned(turned, before.left()), log)
    assert back["item_cosine"] == pytest.approx(1, abs=1e-4)
    assert back["interest_cosine"] == pytest.approx(1, abs=1e-4)
    assert movement(before, turned, log) == moved  # the copy was aligned, not this one


def test_a_strongest_interest_in_another_slot_is_counted() -> None:
    """With the directions of two slots exchanged, interests exchange slots."""
    log = planted_log(users=60)
    before, after = trained(log, CONFIG), trained(log, CONFIG)
    after.model.directions.copy_(after.model.directions.flip(1).clone())
    moved = movement(before, after, log)
    assert moved["item_cosine"] == pytest.approx(1, abs=1e-5)
    assert moved["strongest_changed"] > 0.5
    assert moved["interest_cosine"] < 0.99


def test_each_way_has_a_row() -> None:
    """The release before, then cold and warm, as they come out and aligned."""
    rows = list(compare(planted_log(users=100), CONFIG, days=0))
    assert [row["name"] for row in rows] == [
        "the release before",
        "cold",
        "cold, aligned",
        "warm",
        "warm, aligned",
    ]
    assert all("item_cosine" in row and "recall_at_20" in row for row in rows[1:])
    assert as_cells(rows[0] | {"recall_at_20": 0.2, "recall_at_50": 0.5, "seconds": 3.0}) == (
        "| the release before |  |  |  | 20.0 | 50.0 | 3 |\n"
    )
