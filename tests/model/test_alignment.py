"""An aligned model is the same model, with its items where an earlier one has them."""

import dataclasses

import numpy as np
import pytest
import torch

from training.alignment import mean_cosine, rotation, shared_rows, turn
from training.inference import item_vectors
from training.item_graph import ItemGraph
from training.model import Mind, ServedMind
from training.preset import PRESETS, TrainingConfig
from training.warm_start import Previous, align, parameters_of

ITEMS, WIDTH, INTERESTS = 60, 12, 4
IDS = [f"item-{number}" for number in range(ITEMS)]


def a_model(config: TrainingConfig, seed: int = 0) -> Mind:
    ends = np.arange(1, ITEMS)
    graph = ItemGraph(
        ITEMS,
        np.concatenate([ends, ends + 1]),
        np.concatenate([ends + 1, ends]),
        np.full(2 * len(ends), 0.5, np.float32),
    )
    model = Mind(
        ITEMS,
        width=WIDTH,
        interests=INTERESTS,
        cosine=config.cosine,
        hidden=config.hidden,
        fade=0.1,
        graph=graph,
        smoothing=config.smoothing,
        seed=seed,
    )
    with torch.no_grad():
        for layer in model.layers:
            if isinstance(layer, torch.nn.Linear):  # they start from zero, which hides mistakes
                layer.bias.normal_(generator=torch.Generator().manual_seed(seed))
    return model.eval()


def any_rotation(seed: int = 1) -> np.ndarray:
    square = np.random.default_rng(seed).normal(size=(WIDTH, WIDTH))
    return np.linalg.qr(square)[0]


def served(model: Mind) -> tuple[np.ndarray, ...]:
    """Scores of all items (B, K, N+1), counts, weights, assignment and exemplars."""
    rng = np.random.default_rng(2)
    rows = torch.from_numpy(rng.integers(0, ITEMS + 1, (200, 15)))
    with torch.no_grad():
        table = model.item_table()
        interests, *others = ServedMind(model)(table, rows, torch.zeros(rows.shape))
        return tuple(value.numpy() for value in (interests @ table.T, *others))


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_turned_model_says_the_same(preset: str) -> None:
    """Same scores, weights, slots and exemplars in another basis; with and without a ReLU layer."""
    model = a_model(PRESETS[preset])
    before, table = served(model), item_vectors(model)
    turn(model, any_rotation())
    after = served(model)
    assert np.abs(item_vectors(model) - table).max() > 0.1
    assert np.allclose(before[0], after[0], atol=1e-5)
    assert np.allclose(before[2], after[2], atol=1e-5)
    for place in (1, 3, 4):
        assert (before[place] == after[place]).all()


def test_alignment_undoes_a_rotation() -> None:
    """A model that was only turned lies where it lay again, slots included."""
    model = a_model(PRESETS["default"])
    previous = left_by(model)
    turn(model, any_rotation())
    rows = np.arange(1, ITEMS + 1)
    assert mean_cosine(item_vectors(model), previous.items, rows, rows) < 0.5
    assert align(model, IDS, previous) == pytest.approx(1, abs=1e-5)
    assert np.allclose(item_vectors(model), previous.items, atol=1e-5)
    assert np.allclose(model.bilinear.detach(), previous.parameters["bilinear"], atol=1e-5)


def test_alignment_takes_over_the_directions_of_slots() -> None:
    """They are no part of what was learned, and with others every interest would change slots."""
    model, previous = a_model(PRESETS["default"], seed=1), left_by(a_model(PRESETS["default"]))
    align(model, IDS, previous)
    assert (model.directions.numpy() == previous.parameters["directions"]).all()


def test_another_width_is_left_as_it_is() -> None:
    """There is no orthogonal map between spaces of different width."""
    model = a_model(PRESETS["default"])
    previous = dataclasses.replace(left_by(model), items=np.ones((ITEMS + 1, 3), np.float32))
    before = item_vectors(model)
    assert np.isnan(align(model, IDS, previous))
    assert (item_vectors(model) == before).all()


def test_the_rotation_is_orthogonal_and_the_best() -> None:
    """Also where vectors are noise; no other map that was tried comes nearer."""
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(40, WIDTH)).astype(np.float32) for _ in range(2))
    found = rotation(a, b)
    assert np.allclose(found @ found.T, np.eye(WIDTH), atol=1e-12)
    best = np.linalg.norm(a @ found - b)
    assert all(np.linalg.norm(a @ any_rotation(seed) - b) > best for seed in range(20))


def test_an_unknown_parameter_is_refused() -> None:
    """Whoever adds one must say how it turns, or the model would quietly become another."""
    model = a_model(PRESETS["default"])
    model.register_buffer("novelty", torch.zeros(WIDTH))
    with pytest.raises(ValueError, match="novelty"):
        turn(model, any_rotation())


def test_items_are_found_by_their_ids() -> None:
    """Rows of both tables, of those items that both have."""
    rows, others = shared_rows(["a", "b", "d"], ["b", "c", "d", "a"])
    assert (rows.tolist(), others.tolist()) == ([1, 2, 3], [4, 1, 3])
    assert [part.tolist() for part in shared_rows(["a"], ["b"])] == [[], []]


def left_by(model: Mind) -> Previous:
    return Previous("r_before", "default", 0.1, IDS, item_vectors(model), parameters_of(model))
