"""Marks leave out what a user has had, and little else; and only where users never come back."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from encoder.mind_encoder import MindEncoder
from encoder.release import Manifest, Release
from tests.small_release import make_small_release
from tests.tastes import planted_log
from training.marks import coloured, colours_of
from training.model import MARK, Mind
from training.preset import TrainingConfig
from training.trainer import Catalogue, train_release
from training.warm_start import Previous, warmed

NOW = datetime(2026, 11, 26, 11, 30, tzinfo=UTC)
ITEMS, WIDTH, COLOURS = 200, 16, 8


@given(st.integers(4, 60), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_neighbours_never_share_a_colour_where_there_are_enough(
    items: int, edges: int, seed: int
) -> None:
    """With one colour more than any item has neighbours; and a kept colour is kept."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(1, items + 1, (items * edges, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    ends, others = both[:, 0], both[:, 1]
    enough = int(np.bincount(ends, minlength=2).max()) + 1
    weights = rng.random(len(ends), np.float32) + 0.1
    found = coloured(items, ends, others, weights, enough)
    assert found[0] == -1
    assert ((found[1:] >= 0) & (found[1:] < enough)).all()
    assert (found[ends] != found[others]).all()
    some = np.where(rng.random(items + 1) < 0.5, found, -1)
    again = coloured(items, ends, others, weights, enough, some)
    assert (again[some >= 0] == some[some >= 0]).all()
    assert (again[ends] != again[others]).all()


def test_items_that_nobody_clicked_near_another_share_all_colours() -> None:
    """Evenly, so that few of them have the colour of a user's own."""
    none = np.zeros(0, np.int64)
    found = coloured(100, none, none, np.zeros(0, np.float32), 10)
    assert (np.bincount(found[1:]) == 10).all()


def test_an_own_item_counts_less_and_so_does_its_colour_alone(tmp_path: Path) -> None:
    """As a search sees it: by `MARK`; all other scores, and all but vectors, are as without."""
    marked = make_small_release(tmp_path / "m", items=ITEMS, width=WIDTH, marks=COLOURS)
    plain = make_small_release(tmp_path / "p", items=ITEMS, width=WIDTH)
    rows = np.random.default_rng(1).integers(0, ITEMS + 1, (50, 6))
    rows[0] = 0
    ages = np.zeros(rows.shape, np.float32)
    found, without = MindEncoder(marked).encode(rows, ages), MindEncoder(plain).encode(rows, ages)
    for name in ("counts", "weights", "assignment", "exemplars"):
        assert (getattr(found, name) == getattr(without, name)).all()
    assert (found.vectors[:, :, :WIDTH] == without.vectors).all()
    assert found.mean_cosine() == without.mean_cosine()
    colours = colours_of(marked.items[:, WIDTH:])
    owned = (colours[rows][:, :, None] == colours) & (rows > 0)[:, :, None]  # (U, L, N+1)
    less = found.vectors @ marked.items.T - without.vectors @ plain.items.T  # (U, K, N+1)
    used = np.arange(less.shape[1]) < found.counts[:, None]
    expected = np.where(used[:, :, None] & owned.any(axis=1)[:, None], -MARK, 0)[:, :, 1:]
    assert less[:, :, 1:] == pytest.approx(expected, abs=1e-5)
    assert expected.any()


def test_a_manifest_without_marks_is_as_it_was(tmp_path: Path) -> None:
    """Older versions read it; one with marks says how many."""
    plain = make_small_release(tmp_path / "p").manifest
    assert "marks" not in plain.to_json()
    assert Manifest.model_validate_json(plain.to_json()) == plain
    marked = make_small_release(tmp_path / "m", marks=COLOURS).manifest
    assert (marked.marks, marked.width) == (COLOURS, plain.width + COLOURS)
    assert Manifest.model_validate_json(marked.to_json()) == marked
    with pytest.raises(ValidationError, match="of a width of 24, 23 are marks"):
        Manifest.model_validate_json(marked.to_json().replace('"marks": 8', '"marks": 23'))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Trained with marks, since the config says so."""
    log = planted_log(users=80)
    log = log.between(until_ms=log.cut_ms(0.7))
    folder = tmp_path_factory.mktemp("releases") / "before"
    return train_release(log, folder, created_at=NOW, config=CONFIG)


CONFIG = TrainingConfig(
    window_length=20, width=WIDTH, interests=2, epochs=0.3, negatives=64, marks=COLOURS, fades=()
)


def test_the_next_release_keeps_the_colours(before: Release, tmp_path: Path) -> None:
    """A warm start colours new items only, and lies near the release without its marks."""
    assert (before.manifest.width, before.manifest.marks) == (WIDTH + COLOURS, COLOURS)
    config = dataclasses.replace(CONFIG, marks=0, seed=1)  # marks are the release's, as its fade
    after = train_release(
        planted_log(users=80), tmp_path / "r", created_at=NOW, config=config, previous=before
    )
    assert after.manifest.metrics["warm"] == 1
    assert after.manifest.metrics["item_cosine"] > 0.9
    assert after.manifest.marks == COLOURS
    old, new = Previous.of(before), Previous.of(after)
    assert set(before.item_ids) <= set(after.item_ids)
    rows = after.rows(before.item_ids)
    assert (new.colours[rows] == old.colours[1:]).all()
    assert (new.colours[1:] >= 0).all()
    assert warmed(config, old).marks == COLOURS
    assert warmed(dataclasses.replace(config, trial_marks=0), old).marks == 0


def test_a_new_item_has_no_mark() -> None:
    """Its vector, of fields alone, has the width of the others."""
    ids = ["a", "b", "c"]
    fields = Catalogue({"taste": "value"}, {item: {"taste": "sweet"} for item in ids}).fields(ids)
    model = Mind(3, width=4, interests=2, fields=fields)
    model.mark(torch.tensor([-1, 0, 1, 0]), 2)
    assert colours_of(model.served_table().detach().numpy()[:, 4:]).tolist() == [-1, 0, 1, 0]
    here = model.vectors_from_fields(fields).detach().numpy()
    served = model.field_vectors()
    assert served is not None
    for vector in (here[0], served.vector({"taste": "sweet"})):
        assert vector.shape == (6,)
        assert vector[:4].any()
        assert not vector[4:].any()
