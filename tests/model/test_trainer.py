"""From clicks to a release that has learned what is in them, and nothing that is not."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from encoder.mind_encoder import MindEncoder
from encoder.release import Release, ReleaseError
from tests.tastes import GROUPS, ITEMS_PER_GROUP, group_of, planted_log, shuffled
from training.click_log import ClickLog, ClickLogError
from training.evaluation import HeldOut, evaluate
from training.fit import Progress
from training.inference import item_vectors
from training.preset import PRESETS, TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences
from training.trainer import Catalogue, hold_out, train_release, vocabulary

NOW = datetime(2026, 11, 24, 11, 30, tzinfo=UTC)
CONFIG = TrainingConfig(
    window_length=20,
    width=16,
    interests=3,
    epochs=3.0,
    batch_size=256,
    negatives=128,
    learning_rate=0.02,
    holdout=0.2,
)
CHANCE_AT_20 = 20 / (GROUPS * ITEMS_PER_GROUP)


@pytest.fixture(scope="module")
def planted() -> ClickLog:
    return planted_log()


@pytest.fixture(scope="module")
def progress() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def release(
    planted: ClickLog,
    progress: list[Progress],
    tmp_path_factory: pytest.TempPathFactory,
) -> Release:
    folder = tmp_path_factory.mktemp("releases") / "planted"
    return train_release(
        planted,
        folder,
        created_at=NOW,
        config=CONFIG,
        progress=progress.append,
    )


def test_a_mix_is_fitted_on_request(planted: ClickLog, release: Release, tmp_path: Path) -> None:
    """The model is the same to the bit; users of this log click what they like, again or not."""
    told: list[str] = []
    log = dataclasses.replace(planted, timestamps_ms=planted.timestamps_ms * 100)  # of 69 days
    mixed = train_release(
        log, tmp_path / "r", created_at=NOW, config=CONFIG, own_clicks=30, notice=told.append
    )
    assert release.manifest.mix is None
    assert mixed.items.tobytes() == release.items.tobytes()
    assert mixed.manifest.metrics == release.manifest.metrics
    mix = mixed.manifest.mix
    assert mix is not None
    assert mix.interests > 3
    assert mix.clicks == 30
    newest = log.timestamps_ms > log.timestamps_ms.max() - 7 * 86_400_000
    counts = np.bincount(log.items[newest], minlength=len(log.item_ids))
    assert 0 < newest.mean() < 0.2
    assert mixed.popularity is not None
    assert np.abs(mixed.popularity).max() > 0
    np.testing.assert_allclose(mixed.popularity, mix.popular * np.log1p(counts), rtol=1e-5)
    assert any("the mix: " in line for line in told)


def test_planted_tastes_are_learned(release: Release) -> None:
    """Two tastes of 15 items each: the top 20 holds little else, far above popularity."""
    metrics = release.manifest.metrics
    assert metrics["recall_at_20"] > 0.55  # 20 of 30 items would be 0.67
    assert metrics["recall_at_20"] > 4 * metrics["popularity_recall_at_20"]
    assert metrics["evaluated_users"] == 400


def test_two_tastes_become_two_interests(planted: ClickLog, release: Release) -> None:
    """Most users' two tastes each have an interest whose exemplar is of that taste."""
    encoder = MindEncoder(release)
    sequences = Sequences.from_log(planted, list(release.item_ids))
    rows = sequences.last_windows(20)
    batch = encoder.encode(rows, np.zeros(rows.shape, np.float32))
    apart = 0
    for user, window in enumerate(rows):
        groups = {group_of(release.item_ids[row - 1]) for row in window}
        spoken = {
            group_of(release.item_ids[window[position] - 1])
            for position in batch.exemplars[user]
            if position >= 0
        }
        apart += spoken == groups
    assert apart / len(rows) > 0.9


def test_shuffled_tastes_stay_at_chance(planted: ClickLog, tmp_path: Path) -> None:
    """Where there is nothing to learn, held-out clicks are found no more often than by luck."""
    release = train_release(shuffled(planted), tmp_path / "r", created_at=NOW, config=CONFIG)
    assert release.manifest.metrics["recall_at_20"] == pytest.approx(CHANCE_AT_20, abs=0.02)


def test_the_release_encodes_as_it_was_measured(planted: ClickLog, release: Release) -> None:
    """Measured through the served graph, the held-out recall is the one in the manifest."""
    past, future = hold_out(planted, CONFIG.holdout)
    held_out = HeldOut.split(past, future, list(release.item_ids), CONFIG.window_length)

    def encode(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = MindEncoder(release).encode(windows, np.zeros(windows.shape, np.float32))
        return batch.vectors, batch.counts

    served = evaluate(encode, release.items, held_out)
    assert served["recall_at_20"] == pytest.approx(
        release.manifest.metrics["recall_at_20"], abs=1e-3
    )


def test_the_manifest_says_what_was_trained_on(planted: ClickLog, release: Release) -> None:
    """Only what came before the held-out part; with its name, seed and every hyper-parameter."""
    manifest = release.manifest
    past, future = hold_out(planted, 0.2)
    assert manifest.training.until_ms < future.timestamps_ms.min()
    assert manifest.training.clicks == len(past)
    assert len(future) == pytest.approx(0.2 * len(planted), rel=0.01)
    assert (manifest.release, manifest.parent) == ("r20261124_113000", None)
    assert manifest.training.hyper_parameters["attention_power"] == "inf"
    assert manifest.training.hyper_parameters["width"] == manifest.width == 16


def test_progress_is_told_step_by_step(release: Release, progress: list[Progress]) -> None:
    """Each stage runs from its first step to its last, and training tells its loss."""
    stages = list(dict.fromkeys(step.stage for step in progress))
    assert stages == ["training", "evaluating", "exporting"]
    for stage in stages:
        done = [(step.done, step.total) for step in progress if step.stage == stage]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]
    losses = [step.loss for step in progress if step.loss is not None]
    assert losses[-1] < losses[0]


def test_a_release_places_items_to_come(planted: ClickLog, tmp_path: Path) -> None:
    """From a catalogue that names tastes: a new item lies among the items of its own."""
    items = {item: {"taste": str(group_of(item))} for item in planted.item_ids}
    catalogue = Catalogue({"taste": "value"}, items)
    config = dataclasses.replace(CONFIG, fades=(), epochs=1.0)
    release = train_release(
        planted, tmp_path / "r", created_at=NOW, config=config, catalogue=catalogue
    )
    assert release.item_fields is not None
    for group in range(GROUPS):
        nearest = int(np.argmax(release.items @ release.item_fields.vector({"taste": str(group)})))
        assert group_of(release.item_ids[nearest - 1]) == group


def test_recall_and_loss_are_told_and_drawn(release: Release, progress: list[Progress]) -> None:
    """Recall on held-out clicks rises while the loss falls; both lie beside the release."""
    recalls = [step.recall for step in progress if step.recall is not None]
    assert recalls[-1] > recalls[0]
    assert str(progress[-3]) == "evaluating"
    points = [
        json.loads(line) for line in (release.folder / "curve.jsonl").read_text().splitlines()
    ]
    measured = [point for point in points if point["recall"] is not None]
    assert len(measured) == 20
    assert measured[-1]["recall"] == release.manifest.metrics["recall_at_20"]
    assert points[-1]["loss"] < points[0]["loss"]
    assert (release.folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert {"curve.jsonl", "curves.png"} <= release.manifest.files.keys()


def test_measuring_recall_changes_nothing(planted: ClickLog, release: Release) -> None:
    """The item table is the one of a training that nobody watches."""
    past, _ = hold_out(planted, CONFIG.holdout)
    items = vocabulary(past, 1)
    model, _ = trained_model(Sequences.from_log(past, items), len(items), CONFIG)
    assert item_vectors(model).tobytes() == release.items.tobytes()


@pytest.mark.parametrize("base", sorted(PRESETS))
def test_training_is_deterministic(planted: ClickLog, base: str) -> None:
    """The same seed gives the same bits, another seed others; for every preset."""
    config = dataclasses.replace(
        PRESETS[base], window_length=20, width=16, epochs=0.2, negatives=64
    )

    def trained(seed: int) -> bytes:
        items = vocabulary(planted, 1)
        sequences = Sequences.from_log(planted, items)
        seeded = dataclasses.replace(config, seed=seed)
        model, _ = trained_model(sequences, len(items), seeded)
        return b"".join(value.numpy().tobytes() for value in model.state_dict().values())

    assert trained(0) == trained(0)
    assert trained(0) != trained(1)


def test_the_paper_preset_learns_too(planted: ClickLog, tmp_path: Path) -> None:
    """Raw products, the next click as target, a ReLU layer: trained, exported, above popularity."""
    config = dataclasses.replace(
        PRESETS["paper"],
        window_length=20,
        width=16,
        interests=3,
        hidden=32,
        epochs=4.0,
        negatives=128,
        learning_rate=0.02,
        holdout=0.2,
    )
    metrics = train_release(planted, tmp_path / "r", created_at=NOW, config=config).manifest.metrics
    assert metrics["recall_at_20"] > 2 * metrics["popularity_recall_at_20"]


def test_users_with_a_single_click_do_no_harm(tmp_path: Path) -> None:
    """They teach nothing and cannot be measured on, but are part of the log."""
    users = [f"once-{number}" for number in range(30)] + ["twice"] * 40
    items = [f"item-{number % 7}" for number in range(70)]
    log = ClickLog.from_arrays(users, items, range(70))
    config = dataclasses.replace(CONFIG, epochs=1.0)
    release = train_release(log, tmp_path / "r", created_at=NOW, config=config)
    assert release.manifest.training.users == 31


def test_rare_items_are_left_out(planted: ClickLog) -> None:
    """Items below the minimum have no row; their clicks stay in windows as unknown."""
    log = ClickLog.from_arrays(["a"] * 5, ["x", "y", "x", "z", "z"], [1, 2, 3, 4, 5])
    kept = vocabulary(log, 2)
    assert kept == ["x", "z"]
    assert Sequences.from_log(log, kept).rows.tolist() == [1, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (ClickLog.from_arrays([], [], []), "empty"),
        (ClickLog.from_arrays(["a", "b"], ["x", "y"], [1, 2]), "no user has two clicks"),
    ],
)
def test_nothing_to_learn_from_is_an_error(tmp_path: Path, log: ClickLog, message: str) -> None:
    """An empty log, or one in which nobody comes back, says so and writes nothing."""
    with pytest.raises(ClickLogError, match=message):
        train_release(log, tmp_path / "r", created_at=NOW, config=CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_training(planted: ClickLog, tmp_path: Path) -> None:
    """Nobody waits for a training whose result cannot be written."""
    steps: list[Progress] = []
    with pytest.raises(ReleaseError, match="exists"):
        train_release(
            planted,
            tmp_path,
            created_at=NOW,
            config=CONFIG,
            progress=steps.append,
        )
    assert steps == []
