"""What is to be predicted is never among what it is predicted from."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.tastes import planted_log
from training import recency
from training import replay as replays
from training.benchmark import Benchmark
from training.click_log import ClickLog
from training.evaluation import HeldOut
from training.fit import build_model
from training.item_graph import co_clicks
from training.preset import TrainingConfig
from training.recency import split_users
from training.replay import Replay
from training.sequences import Sequences
from training.trainer import hold_out, train_release, vocabulary

CONFIG = TrainingConfig(window_length=7, width=8, neighbours=5, epochs=0.1, fades=(), holdout=0.2)


@pytest.mark.parametrize(("targets", "horizon"), [(1, 1), (2, 100), (3, 4)])
def test_targets_come_after_their_window(targets: int, horizon: int) -> None:
    """Over a whole epoch, by position: each target is of the window's user and after its end."""
    # Each click is a row of its own, so that a row tells the position that it was taken from.
    lengths = np.random.default_rng(0).integers(1, 30, 300)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sequences = Sequences(np.arange(1, starts[-1] + 1, dtype=np.int32), starts)
    seen = []
    for batch in sequences.epoch(
        np.random.default_rng(1), batch_size=64, window_length=7, targets=targets, horizon=horizon
    ):
        for row, wanted in zip(batch.rows, batch.targets, strict=True):
            window, after = row[row > 0] - 1, wanted[wanted > 0] - 1
            user = np.searchsorted(starts, window[-1], side="right") - 1
            assert window[0] >= starts[user]
            assert len(after) >= 1
            assert window[-1] < after.min()
            assert after.max() < min(starts[user + 1], window[-1] + 1 + horizon)
            seen.append(int(window[-1]) + 1)
    assert sorted(seen) == sequences.example_positions().tolist()


def marked(*, newest: bool) -> ClickLog:
    """A log whose newest clicks, by time, are on items of their own."""
    log = planted_log(users=60, clicks=20)
    cut = log.cut_ms(0.8)
    items = [
        f"late-{position % 9}" if newest and time >= cut else log.item_ids[item]
        for position, (item, time) in enumerate(zip(log.items, log.timestamps_ms, strict=True))
    ]
    return ClickLog.from_arrays(
        [log.user_ids[user] for user in log.users], items, log.timestamps_ms
    )


def test_held_out_clicks_are_neither_counted_nor_linked(
    tmp_path: Path,
) -> None:
    """A release is the same, bit for bit, whatever was clicked in the held-out part."""
    made = []
    for newest in (False, True):
        log = marked(newest=newest)
        release = train_release(
            log,
            tmp_path / str(newest),
            created_at=datetime(2026, 11, 26, tzinfo=UTC),
            config=CONFIG,
        )
        made.append(release)
        past, future = hold_out(log, CONFIG.holdout)
        assert past.timestamps_ms.max() < future.timestamps_ms.min()
        assert not any(item.startswith("late-") for item in vocabulary(past, 1))
    assert made[0].item_ids == made[1].item_ids
    assert made[0].items.tobytes() == made[1].items.tobytes()
    assert made[0].manifest.metrics != made[1].manifest.metrics


def test_windows_to_measure_on_end_before_the_held_out_part() -> None:
    """Each is the newest that its user had in the past, and targets are the future's alone."""
    past, future = hold_out(marked(newest=True), 0.2)
    items = vocabulary(past, 1)
    held_out = HeldOut.split(past, future, items, 7)
    windows = Sequences.from_log(past, items).last_windows(7)
    assert len(held_out) == 60
    assert held_out.windows.tolist() == windows.tolist()
    assert all(row < 0 for targets in held_out.targets for row in targets)  # all are "late-"


def test_users_held_out_of_the_trial_are_not_in_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid users' clicks, targets among them, have no edge and are not counted."""
    lines = [np.arange(10 * user + 1, 10 * user + 11) for user in range(3000)]
    starts = np.arange(0, 30_001, 10, dtype=np.int64)
    sequences = Sequences(np.concatenate(lines).astype(np.int32), starts)
    learned, held_out = split_users(sequences, 7, seed=0)
    held = {(int(window[0]) - 1) // 10 for window in held_out.windows}
    assert len(held) == 300
    ends, others, _ = co_clicks(learned, 30_000, reach=3, most=64)
    assert held.isdisjoint(np.unique((np.concatenate([ends, others]) - 1) // 10).tolist())
    assert held.isdisjoint(np.unique((learned.rows - 1) // 10).tolist())
    # And the trial is given these, not all.
    given: list[Sequences] = []

    def build(sequences: Sequences, items: int, config: TrainingConfig, *rest: object):  # type: ignore[no-untyped-def]
        given.append(sequences)
        return build_model(sequences, items, config, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(recency, "build_model", build)
    config = dataclasses.replace(CONFIG, fades=(0.0, 0.2), negatives=64, examples=2000)
    recency.chosen(sequences, 30_000, config)
    assert [one.rows.tolist() == learned.rows.tolist() for one in given] == [True, True]


def test_the_benchmark_learns_from_its_train_part_alone(tmp_path: Path) -> None:
    """Items that only valid or test users clicked have no edge and no count, but a row."""
    rng = np.random.default_rng(0)
    for part, low in (("train", 1), ("valid", 101), ("test", 201)):
        lines = (f"{u} " + " ".join(map(str, rng.integers(low, low + 99, 9))) for u in range(40))
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    data = Benchmark.read(tmp_path)
    assert data.train.rows.max() < 101
    ends, others, _ = co_clicks(data.train, data.items, reach=3, most=64)
    assert max(ends.max(), others.max()) < 101
    for held_out, low in ((data.valid, 101), (data.test, 201)):
        assert min(min(targets) for targets in held_out.targets) >= low
        assert held_out.windows[held_out.windows > 0].min() >= low


def test_prequential_learns_from_before_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is given the clicks before the split; windows end before what they predict."""
    log = marked(newest=True)
    replay = Replay.of(log, 0.8)
    given: list[Sequences] = []

    class StopHereError(Exception):
        pass

    def trained(sequences: Sequences, items: int, config: TrainingConfig):  # type: ignore[no-untyped-def]
        given.append(sequences)
        raise StopHereError

    monkeypatch.setattr(replays, "trained_model", trained)
    with pytest.raises(StopHereError):
        replays.learn(replay, CONFIG)
    before = int((log.timestamps_ms < replay.split_ms).sum())
    assert len(given[0].rows) == before
    assert not any(item.startswith("late-") for item in replay.past.item_ids)
    known = replay.known_at(replay.times)
    assert (known <= replay.begins).all()
    assert (log.timestamps_ms[np.maximum(known - 1, 0)] < replay.times)[known > replay.firsts].all()
