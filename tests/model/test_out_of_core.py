"""A log larger than memory is trained on in the memory of a small one."""

import dataclasses
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.kept_training import CONFIG, bits
from tests.tastes import planted_log
from training.click_log import ClickLog
from training.click_store import ClickStore, read_clicks
from training.lesson import Lesson
from training.recency import trained_model
from training.trainer import measure, to_learn_from, train_release

ROOT = Path(__file__).parents[2]
BUFFER = 200_000
ITEMS = 300
USERS = 250_000  # of two files
ALLOWED_BYTES = 24_000_000  # 8 bytes for each further click


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """One million clicks and four, both beyond the buffer, peak alike; and tastes are learned."""
    peaks = {}
    for files in (2, 8):
        folder = tmp_path / f"{files}"
        folder.mkdir()
        for number in range(files):
            write_file(folder / f"{number}.parquet", number)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.stored_training"),
                *(str(folder), str(tmp_path / "store"), str(BUFFER)),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=240,
        )
        peak, clicks, recall = done.stdout.split()
        assert int(clicks) > files * 450_000
        assert float(recall) > 0.3  # chance is 0.07
        peaks[files] = int(peak)
    assert peaks[8] - peaks[2] < ALLOWED_BYTES, peaks


def write_file(path: Path, number: int) -> None:
    """Half a million clicks of users who each like a tenth of the items; users are in two files."""
    rng = np.random.default_rng(number)
    clicks = 500_000
    users = rng.integers(0, USERS, clicks) + USERS * (number // 2)
    items = (users % 10) * (ITEMS // 10) + rng.integers(0, ITEMS // 10, clicks)
    times = rng.integers(0, 10**9, clicks)
    columns = {"user_id": pa.array(users), "item_id": pa.array(items), "timestamp": times}
    pq.write_table(pa.table(columns), path, row_group_size=100_000)


@pytest.mark.parametrize("fits", [True, False])
def test_a_log_that_fits_gives_the_same_bits(tmp_path: Path, fits: bool) -> None:
    """Within the buffer the model is the one of the log in memory; beyond it, one as good."""
    log = planted_log(users=1000, clicks=30)
    read = stored(log, tmp_path, len(log) if fits else len(log) // 3)
    assert isinstance(read, ClickLog if fits else ClickStore)
    expected, found = train(log), train(read)
    assert (found[0] == expected[0]) == fits
    assert found[1] == pytest.approx(expected[1], abs=0 if fits else 0.05)
    assert found[1] > 0.3


def test_a_release_is_written_of_a_log_on_disk(tmp_path: Path) -> None:
    """It says what it was trained on, as one of the log in memory would."""
    log = planted_log(users=300, clicks=20)
    config = dataclasses.replace(CONFIG, fades=())
    release = train_release(
        stored(log, tmp_path, len(log) // 3),
        tmp_path / "release",
        created_at=datetime(2026, 11, 26, tzinfo=UTC),
        config=config,
    )
    lesson = to_learn_from(log, config)
    manifest = release.manifest
    record = manifest.training
    assert (record.since_ms, record.until_ms) == (lesson.since_ms, lesson.until_ms)
    assert (record.clicks, record.users) == (lesson.clicks, lesson.users)
    assert list(release.item_ids) == lesson.item_ids
    assert manifest.metrics["evaluated_users"] == len(lesson.held_out)


def stored(log: ClickLog, folder: Path, buffer_clicks: int) -> ClickLog | ClickStore:
    """The log, written as Parquet and read with so large a buffer."""
    columns = {
        "user_id": [log.user_ids[user] for user in log.users],
        "item_id": [log.item_ids[item] for item in log.items],
        "timestamp": log.timestamps_ms,
    }
    path = folder / "clicks.parquet"
    pq.write_table(pa.table(columns), path)
    return read_clicks(path, folder=folder / "store", buffer_clicks=buffer_clicks)


def train(clicks: ClickLog | ClickStore) -> tuple[bytes, float]:
    lesson: Lesson = to_learn_from(clicks, CONFIG)
    model, config = trained_model(lesson.sequences, len(lesson.item_ids), CONFIG)
    return bits(model), measure(model, lesson.sequences, lesson.held_out, config)["recall_at_20"]
