"""A user's profile beside the window: concatenated to each capsule before the ReLU layer."""

import dataclasses

import numpy as np
import pytest
import torch

from training.benchmark import Benchmark, trained
from training.evaluation import HeldOut, measures
from training.export import ExportError, export_graph
from training.fit import build_model
from training.model import Mind
from training.preset import PRESETS, TrainingConfig
from training.recency import split_users
from training.sequences import Sequences

GROUPS, ITEMS_PER_GROUP, COMMON = 20, 20, 5
ITEMS = GROUPS * ITEMS_PER_GROUP + COMMON
CONFIG = dataclasses.replace(
    PRESETS["paper"],
    width=16,
    hidden=32,
    interests=2,
    epochs=20.0,
    batch_size=128,
    negatives=128,
    learning_rate=0.02,
)


def clicks_of_users(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First an item that all click, then one of the group that the profile's second field tells."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(GROUPS, size=count)
    first = GROUPS * ITEMS_PER_GROUP + 1 + rng.integers(COMMON, size=count)
    second = groups * ITEMS_PER_GROUP + rng.integers(ITEMS_PER_GROUP, size=count) + 1
    return first, second, np.stack([rng.integers(4, size=count), groups + 1], axis=1)


def data(*, told: bool) -> Benchmark:
    first, second, profiles = clicks_of_users(3000, 0)
    if not told:
        profiles = np.random.default_rng(9).permutation(profiles)
    rows = np.stack([first, second], axis=1).ravel().astype(np.int32)
    train = Sequences(rows, np.arange(0, len(rows) + 1, 2), profiles)
    first, second, profiles = clicks_of_users(400, 1)
    held_out = HeldOut(first[:, None], [frozenset({row}) for row in second.tolist()], profiles)
    return Benchmark(train, held_out, held_out, ITEMS)


@pytest.mark.parametrize("told", [True, False])
def test_a_taste_that_only_the_profile_tells_is_learned(told: bool) -> None:
    """Its 20 items are the top 20; with profiles dealt out at random, recall stays at chance."""
    split = data(told=told)
    found, _ = trained(split, CONFIG)(split.test)
    recall = measures(found, split.test.targets)["recall_at_20"]
    if told:
        assert recall > 0.8
    else:
        assert recall == pytest.approx(20 / ITEMS, abs=0.05)


def test_a_profile_changes_every_interest_in_use_and_no_other() -> None:
    """It is concatenated to each capsule; slots that the user does not have remain zero."""
    model = Mind(9, width=6, interests=3, hidden=8, cosine=False, profile=(4, 3))
    mask = torch.ones(1, 4, dtype=torch.bool)
    inputs = torch.randn(1, 4, 6), mask, torch.zeros(1, 4, 3)
    one, _ = model.encode(*inputs, torch.tensor([[1, 2]]))
    two, _ = model.encode(*inputs, torch.tensor([[1, 1]]))
    assert (one != two).any(dim=2).tolist() == [[True, True, False]]
    assert not one[0, 2].any()


def test_what_training_did_not_have_is_not_known() -> None:
    """Code 0 and codes beyond the table are zeros, and each field has vectors of its own."""
    model = Mind(9, width=6, interests=1, hidden=8, profile=(4, 3), profile_width=2)
    found = model.profile_vectors(torch.tensor([[0, 0], [4, 3], [-1, 9], [1, 1]]))
    assert not found[:3].any()
    assert model.profile_table is not None
    assert found[3].tolist() == [*model.profile_table[1].tolist(), *model.profile_table[5].tolist()]


def test_profiles_stay_with_their_users() -> None:
    """In batches, and when users are held out to try something on."""
    lines = [np.full(12, user + 1) for user in range(50)]
    starts = np.arange(0, 12 * 50 + 1, 12)
    profiles = np.arange(1, 51)[:, None]
    sequences = Sequences(np.concatenate(lines).astype(np.int32), starts, profiles)
    for batch in sequences.epoch(
        np.random.default_rng(0), batch_size=7, window_length=5, targets=1, horizon=1
    ):
        assert batch.profiles is not None
        np.testing.assert_array_equal(batch.profiles, batch.rows[:, :1])
    learned, held_out = split_users(sequences, 5, 0)
    assert learned.profiles is not None
    assert held_out.profiles is not None
    np.testing.assert_array_equal(learned.profiles[:, 0], learned.rows[::12])
    np.testing.assert_array_equal(held_out.profiles, held_out.windows[:, :1])


def test_a_model_with_a_profile_is_not_exported() -> None:
    """Clicks carry no profile, so its graph could not be served."""
    model = Mind(9, width=6, interests=1, hidden=8, profile=(4,))
    with pytest.raises(ExportError, match="user profile"):
        export_graph(model)


def test_a_profile_is_for_models_that_have_one() -> None:
    """And a model can have one only with a ReLU layer."""
    inputs = torch.randn(1, 4, 6), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, 1)
    codes = torch.ones(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 profile fields"):
        Mind(9, width=6, interests=1, hidden=8).encode(*inputs, codes)
    with pytest.raises(ValueError, match="1 profile fields"):
        Mind(9, width=6, interests=1, hidden=8, profile=(4,)).encode(*inputs)
    sequences = Sequences(np.array([1, 2], np.int32), np.array([0, 2]), np.array([[1]]))
    with pytest.raises(ValueError, match="hidden"):
        build_model(sequences, 2, TrainingConfig())
