"""A release that starts from the one before it stays in its space, and learns with fewer passes."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from encoder.release import PARAMETERS_FILE, Release, ReleaseError
from tests.small_release import make_small_release
from tests.tastes import planted_log
from training.click_log import ClickLog
from training.fit import Progress, build_model
from training.preset import TrainingConfig
from training.sequences import Sequences
from training.trainer import train_release
from training.warm_start import Previous, obstacle, packed, parameters_of, start, warmed

NOW = datetime(2026, 11, 24, 11, 30, tzinfo=UTC)
LATER = datetime(2026, 11, 24, 17, 30, tzinfo=UTC)
CONFIG = TrainingConfig(
    window_length=20,
    width=16,
    interests=3,
    epochs=3.0,
    batch_size=256,
    negatives=128,
    learning_rate=0.02,
    warm=0.25,
    holdout=0.2,
)


@pytest.fixture(scope="module")
def planted() -> ClickLog:
    return planted_log()


@pytest.fixture(scope="module")
def before(planted: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Trained on the older part of the clicks."""
    log = planted.between(until_ms=planted.cut_ms(0.7))
    folder = tmp_path_factory.mktemp("releases") / "before"
    return train_release(log, folder, created_at=NOW, config=CONFIG)


def test_a_warm_release_stays_in_place_and_keeps_its_recall(
    planted: ClickLog, before: Release, tmp_path: Path
) -> None:
    """A quarter of the steps; as good as a cold one, whose items lie nowhere near."""
    # Another seed, since with the same one and the same items even a cold start begins alike.
    config = dataclasses.replace(CONFIG, seed=1)
    steps: list[Progress] = []
    notices: list[str] = []
    warm = train_release(
        planted,
        tmp_path / "warm",
        created_at=LATER,
        config=config,
        progress=steps.append,
        previous=before,
        notice=notices.append,
    )
    cold_steps: list[Progress] = []
    cold = train_release(
        planted, tmp_path / "cold", created_at=LATER, config=config, progress=cold_steps.append
    )
    metrics = warm.manifest.metrics
    assert metrics["warm"] == 1
    assert metrics["item_cosine"] > 0.9
    assert cosine_of(cold, before) < 0.5
    assert cosine_of(warm, before) == pytest.approx(metrics["item_cosine"], abs=1e-5)
    assert metrics["recall_at_20"] > cold.manifest.metrics["recall_at_20"] - 0.02
    assert training_steps(steps) == pytest.approx(training_steps(cold_steps) / 4, abs=1)
    assert (warm.manifest.parent, cold.manifest.parent) == (before.name, None)
    assert "item_cosine" not in cold.manifest.metrics
    assert notices == [f"starting from release {before.name}"]


def test_another_preset_starts_anew_and_is_aligned(
    planted: ClickLog, before: Release, tmp_path: Path
) -> None:
    """It says why, takes all its steps, and lies nearer to the release than it would by itself."""
    notices: list[str] = []
    config = dataclasses.replace(CONFIG, interests=2, epochs=1.0)
    release = train_release(
        planted,
        tmp_path / "r",
        created_at=LATER,
        config=config,
        previous=before,
        notice=notices.append,
    )
    assert release.manifest.metrics["warm"] == 0
    assert release.manifest.metrics["item_cosine"] > 0.5
    assert release.manifest.parent == before.name
    assert "number of interests is 3, not 2" in notices[0]


def test_a_release_keeps_what_the_next_one_starts_from(before: Release) -> None:
    """The table as trained, S and the directions, in an archive of plain arrays."""
    left = Previous.of(before)
    assert {name: value.shape for name, value in left.parameters.items()} == {
        "table": before.items.shape,
        "bilinear": (16, 16),
        "directions": (16, 3),
    }
    assert np.shares_memory(left.items, before.items)
    assert left.items.shape == before.items.shape
    assert packed(left.parameters) == (before.folder / PARAMETERS_FILE).read_bytes()


def test_a_model_starts_where_the_release_stands() -> None:
    """Known items at their vectors, a new one amid its neighbours, a lone one anywhere."""
    items = ["known-1", "known-2", "lone", "new"]
    sequences = Sequences(np.array([1, 4, 2, 3], np.int32), np.array([0, 3, 4]))
    config = dataclasses.replace(CONFIG, graph_reach=1)
    parent = build_model(sequences, 4, dataclasses.replace(config, seed=7))
    table = np.zeros((3, 16), np.float32)
    table[1, 0] = table[2, 1] = 1
    parameters = parameters_of(parent) | {"table": table}
    served = np.full_like(table, np.nan)
    previous = Previous("r_before", "default", 0.0, ["known-2", "known-1"], served, parameters)
    model = build_model(sequences, 4, config)
    lone = model.table[3].detach().numpy().copy()
    start(model, items, previous)
    found = model.table.detach().numpy()
    assert (found[1] == table[2]).all()
    assert (found[2] == table[1]).all()
    assert found[4] == pytest.approx((table[1] + table[2]) / 2)
    assert (found[3] == lone).all()
    assert lone.any()
    assert not found[0].any()
    assert (model.directions.numpy() == parent.directions.numpy()).all()
    assert (model.bilinear.detach().numpy() == parent.bilinear.detach().numpy()).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"window_length": 30, "epochs": 1.0}, None),
        ({"width": 32}, "width is 16, not 32"),
        ({"interests": 2}, "number of interests is 3, not 2"),
        ({"hidden": 8}, "ReLU layer is 0, not 8"),
        ({"name": "paper"}, "preset is default, not paper"),
    ],
)
def test_what_cannot_go_on_says_why(
    before: Release, changes: dict[str, object], reason: str | None
) -> None:
    """Parameters of another shape or meaning are not taken over."""
    found = obstacle(dataclasses.replace(CONFIG, **changes), Previous.of(before))  # type: ignore[arg-type]
    assert found == reason or (reason is not None and reason in str(found))


def test_a_release_without_parameters_is_only_aligned_to(tmp_path: Path) -> None:
    """Such as one that was written before there were any."""
    left = Previous.of(make_small_release(tmp_path / "r"))
    assert left.parameters == {}
    assert "did not keep" in str(obstacle(CONFIG, left))


def test_the_fade_is_taken_over_without_a_trial(before: Release) -> None:
    """Interests whose clicks fade otherwise are others."""
    config = dataclasses.replace(CONFIG, fades=(0.0, 0.2), warm=0.5, examples=101)
    found = warmed(config, dataclasses.replace(Previous.of(before), fade=0.2))
    assert (found.fade, found.fades, found.epochs, found.examples) == (0.2, (), 1.5, 50)


def test_damaged_parameters_are_refused(before: Release) -> None:
    """By name, not by a traceback from within numpy."""
    path = before.folder / PARAMETERS_FILE
    content = path.read_bytes()
    try:
        path.write_bytes(b"no archive")
        with pytest.raises(ReleaseError, match=PARAMETERS_FILE):
            Previous.of(before)
    finally:
        path.write_bytes(content)


def cosine_of(release: Release, before: Release) -> float:
    rows = [release.row_of[item] for item in before.item_ids]
    return float((release.items[rows] * before.items[1:]).sum(axis=1).mean())


def training_steps(steps: list[Progress]) -> int:
    return next(step.total for step in steps if step.stage == "training")
