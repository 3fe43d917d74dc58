"""Whether the order of clicks counts is found out, and on clicks that no trial has learned from."""

from collections.abc import Callable

import numpy as np
import pytest

from training.preset import TrainingConfig
from training.recency import FEWEST_USERS, chosen, split_users
from training.sequences import Sequences

ITEMS, CLUSTERS, CLICKS = 240, 24, 30
LAST_ONLY, ALL_ALIKE = 3.0, 0.0
MARKS = 64


def test_the_last_click_counts_where_it_says_what_is_next() -> None:
    """Users who go on from where they are; there the table starts spectrally, too."""

    def walk(rng: np.random.Generator) -> np.ndarray:
        return (rng.integers(ITEMS) + np.arange(CLICKS)) % ITEMS + 1

    found = choice(walk)
    assert found.fade == LAST_ONLY
    assert (found.spectral, found.epochs, found.graph_reach) == (True, 2.5, 2)
    never = choice(walk, spectral_epochs=0.0, trial_marks=0)
    assert (never.fade, never.spectral, never.epochs) == (LAST_ONLY, False, 8.0)
    assert (never.graph_reach, never.marks) == (3, 0)


def test_all_clicks_count_where_their_order_says_nothing() -> None:
    """Users who come back to any of three tastes at any time."""

    def mixed(rng: np.random.Generator) -> np.ndarray:
        tastes = rng.choice(CLUSTERS, 3, replace=False)
        size = ITEMS // CLUSTERS
        return rng.choice(tastes, CLICKS) * size + rng.integers(size, size=CLICKS) + 1

    found = choice(mixed)
    assert found.fade == ALL_ALIKE
    assert (found.spectral, found.epochs, found.graph_reach) == (False, 8.0, 3)
    assert found.marks == 0  # since they come back


def test_own_items_are_left_out_where_nobody_comes_back() -> None:
    """Users who work through the items of one taste, and so want what they have not had."""

    def through(rng: np.random.Generator) -> np.ndarray:
        size = ITEMS // 4
        return rng.integers(4) * size + rng.permutation(size)[:CLICKS] + 1

    assert choice(through).marks == MARKS
    assert choice(through, trial_marks=0).marks == 0


def choice(
    draw: Callable[[np.random.Generator], np.ndarray],
    spectral_epochs: float = 2.5,
    trial_marks: int = MARKS,
) -> TrainingConfig:
    rng = np.random.default_rng(0)
    sequences = of_lines([draw(rng) for _ in range(FEWEST_USERS * 10)])
    config = TrainingConfig(
        width=16,
        interests=1,
        window_length=20,
        negatives=ITEMS,
        targets=1,
        horizon=1,
        fades=(ALL_ALIKE, LAST_ONLY),
        examples=200_000,
        spectral_epochs=spectral_epochs,
        trial_marks=trial_marks,
    )
    found = chosen(sequences, ITEMS, config)
    assert found.fades == ()
    return found


def test_users_held_out_are_not_learned_from() -> None:
    """Their history is their window, and what follows is to be found."""
    rng = np.random.default_rng(1)
    lines = [np.full(rng.integers(1, 40), user + 1) for user in range(1000)]
    learned, held_out = split_users(of_lines(lines), window_length=7, seed=0)
    assert 0 < len(held_out) <= 100
    held = {int(window[0]) for window in held_out.windows}
    assert held.isdisjoint(learned.rows.tolist())
    assert len(learned) == 1000 - len(held)
    for window, targets in zip(held_out.windows, held_out.targets, strict=True):
        user = int(window[0])
        assert targets == {user}
        assert (window > 0).sum() == min(7, int(0.8 * len(lines[user - 1])))


@pytest.mark.parametrize("fades", [(ALL_ALIKE, LAST_ONLY), ()])
def test_few_users_decide_nothing(fades: tuple[float, ...]) -> None:
    """The config is taken as it is."""
    sequences = of_lines([np.arange(1, 11)] * (FEWEST_USERS - 1))
    config = TrainingConfig(fades=fades)
    assert chosen(sequences, 10, config) == config


def of_lines(lines: list[np.ndarray]) -> Sequences:
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    return Sequences(np.concatenate(lines).astype(np.int32), starts.astype(np.int64))
