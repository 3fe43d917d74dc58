"""The evaluation that models are compared under: what is read, held back and found."""

from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest

from training.benchmark import (
    WINDOW,
    Benchmark,
    change,
    item_knn,
    mean_cosine,
    popularity,
    renewed,
    run,
)
from training.item_graph import co_clicks
from training.item_knn import ItemKnn
from training.sequences import Sequences


def folder_of(tmp_path: Path, train: str, valid: str, test: str) -> Path:
    for part, text in (("train", train), ("valid", valid), ("test", test)):
        (tmp_path / f"{part}.txt").write_text(text)
    return tmp_path


def test_history_and_targets_are_cut_at_four_fifths(tmp_path: Path) -> None:
    """The window is the newest of the history, and no target is in it."""
    line = " ".join(str(item) for item in range(1, 41))
    folder = folder_of(tmp_path, "u 1 2 3\n", f"v {line}\n", "w 7 8 9 10 11\n")
    data = Benchmark.read(folder)
    assert data.items == 40
    assert data.valid.windows.tolist() == [list(range(13, 33))]
    assert data.valid.targets == [frozenset(range(33, 41))]
    assert data.test.windows[0, :5].tolist() == [7, 8, 9, 10, 0]
    assert data.test.targets == [frozenset({11})]
    assert data.valid.windows.shape[1] == WINDOW


def test_nothing_is_learned_from_those_who_are_recommended_to(tmp_path: Path) -> None:
    """Neither their targets nor their histories are clicks of the training part or its graph."""
    folder = folder_of(tmp_path, "u 1 2 3\n", "v 2 8 9 4 5\n", "w 3 6 7 1 2\n")
    data = Benchmark.read(folder)
    assert data.train.rows.tolist() == [1, 2, 3]
    ends, others, _ = co_clicks(data.train, data.items, reach=9, most=9)
    assert set(ends.tolist()) | set(others.tolist()) == {1, 2, 3}
    found, _ = item_knn(data)(data.valid)
    assert set(found[found > 0].tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("bad", ["v 1 two 3", "v 1 0 3", "v"])
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    """By file and number."""
    folder = folder_of(tmp_path, "u 1 2\nu 3 4\n", f"v 1 2\n{bad}\n", "w 1 2\n")
    with pytest.raises(SystemExit, match=r"valid\.txt:2"):
        Benchmark.read(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Rather than a traceback."""
    with pytest.raises(SystemExit, match=r"train\.txt cannot be read"):
        Benchmark.read(tmp_path)


def test_popularity_is_of_the_training_part(tmp_path: Path) -> None:
    """Most clicked first."""
    data = Benchmark.read(folder_of(tmp_path, "u 5 2 2\nx 2 5 1\n", "v 1 2 3 4 5\n", "w 1 2\n"))
    found, likeness = popularity(data)(data.valid)
    assert found[0, :3].tolist() == [2, 5, 1]
    assert likeness is None


def test_item_knn_adds_up_cosines() -> None:
    """Of the users who clicked both, each once, however often they did."""
    rows = np.array([1, 2, 2, 1, 2, 3, 3, 1], np.int32)
    knn = ItemKnn(Sequences(rows, np.array([0, 3, 6, 8])), 4)
    found = knn.search(np.array([[1, 0], [2, 3], [4, 0]]), 3)
    # Users {1, 2}, {1, 2, 3}, {1, 3}: cos(1, 2) = cos(1, 3) = 2/√6 and cos(2, 3) = 1/2.
    assert found[0].tolist() == [2, 3, -1]
    assert found[1].tolist() == [1, 2, 3]
    assert found[2].tolist() == [-1, -1, -1]


def test_only_the_rows_measured_are_written_anew() -> None:
    """The others stay, all in the order of the presets."""
    order = ["popularity", "paper", "default"]
    first = renewed("", {"default": "| default | 1 |", "paper": "| paper | 1 |"}, order)
    again = renewed(first, {"popularity": "| popularity | 1 |", "paper": "| paper | 3 |"}, order)
    rows = ["| popularity | 1 |", "| paper | 3 |", "| default | 1 |"]
    assert again.splitlines()[-3:] == rows
    assert again.splitlines()[:-3] == first.splitlines()[:-2]


def test_mean_cosine_is_over_used_slots() -> None:
    """Users with a single interest do not count."""
    interests = np.zeros((2, 3, 2), np.float32)
    interests[0] = [[1, 0], [0.6, 0.8], [0, 1]]
    interests[1, 0] = [1, 0]
    assert mean_cosine(interests, np.array([2, 1])) == pytest.approx(0.6)
    assert mean_cosine(interests[1:], np.array([1])) is None


def test_fields_can_be_changed_by_name() -> None:
    """Each as the type it has; anything else is refused with the names that there are."""
    assert change("targets=4") == ("targets", 4)
    assert change("temperature=0.07") == ("temperature", 0.07)
    assert change("attention_power=inf") == ("attention_power", float("inf"))
    assert change("cosine=false") == ("cosine", False)
    for wrong in ("cosine=0", "targets=two", "heads=4", "targets"):
        with pytest.raises(ArgumentTypeError):
            change(wrong)


@pytest.mark.parametrize(
    ("preset", "changes"), [("default", {}), ("maxmf", {"learning_rate": 0.03})]
)
def test_a_preset_is_measured_on_both_parts(
    tmp_path: Path, preset: str, changes: dict[str, object]
) -> None:
    """Two groups of items that nobody mixes: the trained model finds the right one."""
    rng = np.random.default_rng(0)

    def lines(count: int) -> str:
        text = ""
        for user in range(count):
            own = rng.permutation(60)[:12] + 1 + 60 * (user % 2)
            text += f"u{user} {' '.join(map(str, own))}\n"
        return text

    data = Benchmark.read(folder_of(tmp_path, lines(300), lines(20), lines(20)))
    results = run(data, preset, 0, changes)
    chance = 50 / 120
    for part in ("valid", "test"):
        assert results[part]["recall_at_50"] > 1.5 * chance
        assert 0 <= results[part]["mean_cosine"] <= 1
        assert 50 / 120 < results[part]["catalogue"] <= 1
