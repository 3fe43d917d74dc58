"""What `mindstream train` reads, and what it leaves behind."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from encoder.mix import MOST_RECENT
from encoder.settings import load_settings
from mindstream import training_run
from training.click_log import ClickLog, ClickLogError
from training.click_store import ClickStore


@pytest.mark.parametrize(("buffer", "kind"), [(1000, ClickStore), (2000, ClickLog)])
def test_clicks_beyond_the_buffer_are_sorted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int, kind: type
) -> None:
    """Of a folder of files, in the releases' cache; it is gone afterwards, also after an error."""
    settings = load_settings(
        releases={"cache": str(tmp_path / "cache")}, trainer={"buffer_clicks": buffer}
    )
    given = []

    def train(log: Any, *_: object) -> None:
        given.append(log)
        assert (tmp_path / "cache" / "clicks_0").exists() == (kind is ClickStore)
        if len(given) == 2:
            raise ClickLogError("as if")

    monkeypatch.setattr(training_run, "train", train)
    for done in ("previous_release", "pass_the_gate", "put_into_use"):
        monkeypatch.setattr(training_run, done, lambda *_, **__: None)
    files = tmp_path / "files"
    files.mkdir()
    for number in range(2):
        rows = range(number * 1000, number * 1000 + 1000)
        columns = {
            "user_id": pa.array([row % 70 for row in rows]),
            "item_id": pa.array([row % 9 for row in rows]),
            "timestamp": pa.array(list(rows)),
        }
        pq.write_table(pa.table(columns), files / f"{number}.parquet")
    console = Console(quiet=True)
    training_run.run_training(settings, files, None, console)
    with pytest.raises(ClickLogError, match="as if"):
        training_run.run_training(settings, files, None, console)
    assert [type(log) for log in given] == [kind, kind]
    assert not (tmp_path / "cache" / "clicks_0").exists()


def test_a_mix_is_of_all_that_windows_hold() -> None:
    """Up to what a row can say; and releases may read less of them."""
    assert training_run.own_clicks(load_settings()) is None
    mix = {"mix": True, "window_length": 20}
    settings = load_settings(trainer=mix, window_length=80)
    assert training_run.own_clicks(settings) == 80
    assert training_run.training_config(settings).window_length == 20
    assert training_run.own_clicks(load_settings(trainer=mix, window_length=5000)) == MOST_RECENT
    assert training_run.training_config(load_settings(window_length=80)).window_length == 80


def test_marks_are_tried_unless_turned_off_or_a_mix_does_their_part() -> None:
    """Both leave out own items, and together they would find less."""
    for trainer, marks in ({}, 64), ({"marks": False}, 0), ({"mix": True}, 0):
        settings = load_settings(trainer=trainer)
        assert training_run.training_config(settings).trial_marks == marks
