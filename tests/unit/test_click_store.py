"""A log on disk teaches what the same log in memory does."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training import click_store, item_graph
from training.checkpoint import Purpose
from training.click_log import ClickLog, ClickLogError
from training.click_store import ClickStore, read_clicks
from training.evaluation import HeldOut
from training.item_graph import co_clicks
from training.lesson import Lesson
from training.preset import TrainingConfig
from training.sequence_store import BLOCKS_TOGETHER
from training.sequences import Learnable, Sequences, item_counts
from training.trainer import to_learn_from

BUFFER = 160  # of 3,000 clicks: many parts, and several buffers
CONFIG = TrainingConfig(window_length=5, holdout=0.2)
ITEMS = 40


def write_files(folder: Path, *, seed: int = 0, clicks: int = 3000) -> Path:
    """Shuffled clicks in three files of different types, a tenth of them in two files."""
    rng = np.random.default_rng(seed)
    users = (rng.pareto(1, clicks) * 20).astype(int) % 150
    items = rng.integers(0, ITEMS, clicks) * rng.integers(0, 2, clicks)
    times = rng.integers(0, 500, clicks) * 3_600_000  # many at the same time
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("a.parquet", "b.parquet", "later/c.parquet")):
        part = slice(number * clicks // 3, (number + 1) * clicks // 3 + (clicks // 10))
        of_users: Any = pa.array(users[part])
        of_items: Any = pa.array([f"item {item}" for item in items[part]])
        if number == 1:
            of_users = of_users.cast(pa.string()).dictionary_encode()
            of_items = of_items.dictionary_encode()
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        columns = {"user_id": of_users, "item": of_items, "timestamp": times[part]}
        pq.write_table(pa.table(columns), path, row_group_size=257)
    (folder / "_SUCCESS").touch()
    return folder


def both(tmp_path: Path, config: TrainingConfig = CONFIG, seed: int = 0) -> tuple[Lesson, Lesson]:
    """In memory, and from disk."""
    files = write_files(tmp_path / "files", seed=seed)
    store = ClickStore.from_parquet(files, folder=tmp_path / "store", buffer_clicks=BUFFER)
    assert store.parts > 2 * BLOCKS_TOGETHER
    return to_learn_from(ClickLog.from_parquet(files), config), store.lesson(config)


def lines(sequences: Learnable) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(block.rows[start:end].tolist())
        for block in sequences.blocks()
        for start, end in zip(block.starts, block.starts[1:], strict=False)
    )


def measured(held_out: HeldOut) -> Counter[tuple[Any, ...]]:
    """Windows with known targets, and how many unknown ones."""
    return Counter(
        (
            tuple(row for row in window.tolist()),
            frozenset(row for row in rows if row > 0),
            sum(row < 0 for row in rows),
        )
        for window, rows in zip(held_out.windows, held_out.targets, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "seed"),
    [
        ({}, 0),
        ({}, 1),
        ({"holdout": 0.0}, 2),
        ({"min_item_clicks": 35}, 3),
        ({"holdout": 0.999}, 4),
    ],
)
def test_it_teaches_what_the_log_in_memory_does(
    tmp_path: Path, change: dict[str, Any], seed: int
) -> None:
    """Sequences, items, held-out users and the record are the same; only users' order is not."""
    memory, disk = both(tmp_path, replace(CONFIG, **change), seed)
    assert lines(disk.sequences) == lines(memory.sequences)
    assert len(disk.sequences) == len(memory.sequences)
    assert measured(disk.held_out) == measured(memory.held_out)
    assert disk.sequences.example_count == memory.sequences.example_count
    for name in ("item_ids", "since_ms", "until_ms", "clicks", "users"):
        assert getattr(disk, name) == getattr(memory, name), name
    np.testing.assert_array_equal(
        item_counts(disk.sequences, len(disk.item_ids)),
        item_counts(memory.sequences, len(memory.item_ids)),
    )


def test_clicks_from_a_time_on(tmp_path: Path) -> None:
    """As in memory; none at all is an error."""
    files = write_files(tmp_path / "files")
    since = 1_000_000_000
    log = ClickLog.from_parquet(files, since_ms=since)
    store = read_clicks(files, folder=tmp_path / "store", buffer_clicks=BUFFER, since_ms=since)
    assert isinstance(store, ClickStore)
    assert (store.clicks, store.oldest_ms) == (len(log), int(log.timestamps_ms.min()))
    assert store.item_ids == log.item_ids
    with pytest.raises(ClickLogError, match="empty"):
        read_clicks(files, folder=tmp_path / "store", buffer_clicks=BUFFER, since_ms=10**13)


def test_the_cut_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any share, also where the range of times needs many passes."""
    files = write_files(tmp_path / "files")
    log = ClickLog.from_parquet(files)
    store = ClickStore.from_parquet(files, folder=tmp_path / "store", buffer_clicks=BUFFER)
    monkeypatch.setattr(click_store, "_BINS", 8)
    shares = [0.0, 0.01, 0.3, 0.5, 0.8, 0.95, 1.0]
    assert [store.cut_ms(share) for share in shares] == [log.cut_ms(share) for share in shares]


def test_a_log_that_fits_the_buffer_stays_in_memory(tmp_path: Path) -> None:
    """And is the log that it was; nothing is written."""
    files = write_files(tmp_path / "files")
    rows = sum(pq.read_metadata(path).num_rows for path in files.rglob("*.parquet"))
    read = read_clicks(files, folder=tmp_path / "store", buffer_clicks=rows)
    assert isinstance(read, ClickLog)
    assert not (tmp_path / "store").exists()
    paths = sorted(files.rglob("*.parquet"))
    tables = [pq.read_table(path) for path in paths]
    alike = ClickLog.from_arrays(
        [str(user) for table in tables for user in table.column("user_id").to_pylist()],
        [item for table in tables for item in table.column("item").to_pylist()],
        np.concatenate([table.column("timestamp").to_numpy() for table in tables]),
    )
    assert (read.user_ids, read.item_ids) == (alike.user_ids, alike.item_ids)
    for name in ("users", "items", "timestamps_ms"):
        np.testing.assert_array_equal(getattr(read, name), getattr(alike, name))
    larger = read_clicks(files, folder=tmp_path / "store", buffer_clicks=rows - 1)
    assert isinstance(larger, ClickStore)


def test_an_epoch_asks_for_each_click_once(tmp_path: Path) -> None:
    """Over all buffers; another generator state gives another order, the same gives the same."""
    memory, disk = both(tmp_path)

    def epoch(sequences: Learnable, seed: int) -> list[tuple[tuple[int, ...], int]]:
        batches = sequences.epoch(
            np.random.default_rng(seed), batch_size=7, window_length=5, targets=1, horizon=1
        )
        return [
            (tuple(row for row in window if row), target)
            for batch in batches
            for window, [target] in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)
        ]

    assert Counter(epoch(disk.sequences, 0)) == Counter(epoch(memory.sequences, 0))
    assert epoch(disk.sequences, 1) == epoch(disk.sequences, 1) != epoch(disk.sequences, 2)


def test_a_short_training_sees_users_of_all_parts(tmp_path: Path) -> None:
    """A third of a pass is a third of each buffer, and as many batches as were asked for."""
    _, disk = both(tmp_path)
    read: list[int] = []

    def epoch(batches: int) -> int:
        passed = disk.sequences.epoch(
            np.random.default_rng(0),
            batch_size=4,
            window_length=5,
            targets=1,
            horizon=1,
            batches=batches,
        )
        return sum(1 for _ in passed)

    original = disk.sequences._read  # type: ignore[attr-defined]
    disk.sequences._read = lambda blocks: read.append(len(blocks)) or original(blocks)  # type: ignore[attr-defined]
    whole = disk.sequences.example_count // 4
    read.clear()
    assert epoch(whole // 3) == whole // 3
    assert len(read) > 2
    assert max(read) == BLOCKS_TOGETHER
    assert epoch(1) == 1


def test_the_graph_of_parts_is_the_graph_of_all(tmp_path: Path) -> None:
    """Edge for edge and bit for bit while all pairs are held."""
    memory, disk = both(tmp_path)
    items = len(disk.item_ids)
    for found, expected in zip(
        co_clicks(disk.sequences, items, reach=3, most=4),
        co_clicks(memory.sequences, items, reach=3, most=4),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_heaviest_pairs_outlive_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """When not all pairs can be held, planted ones lose little, alike in both directions."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(30):
        rows = rng.integers(1, ITEMS + 1, (200, 4)).astype(np.int32)
        rows[::2, 1] = (rows[::2, 0] - 1) // 2 * 2 + 2  # an even item after it or the odd before
        parts.append(Sequences(rows.ravel(), np.arange(0, rows.size + 1, 4)))

    class Parts:
        def blocks(self) -> Any:
            return iter(parts)

    whole = graph_of(Parts())
    monkeypatch.setattr(item_graph, "_PAIRS_HELD", 0)
    pruned = graph_of(Parts())
    assert pruned != whole  # or else nothing was dropped on the way
    assert all(pruned[other, end] == weight for (end, other), weight in pruned.items())
    for odd in range(1, ITEMS, 2):
        exact = whole[odd, odd + 1]
        assert 0.85 * exact < pruned[odd, odd + 1] <= exact


def graph_of(sequences: Any) -> dict[tuple[int, int], float]:
    ends, others, weights = co_clicks(sequences, ITEMS, reach=1, most=1)
    pairs = zip(ends.tolist(), others.tolist(), strict=True)
    return dict(zip(pairs, weights.tolist(), strict=True))


def test_few_users_are_measured_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many of those that a log in memory would measure, the same with any number of parts."""
    monkeypatch.setattr(click_store, "MEASURED_USERS", 10)
    memory, disk = both(tmp_path)
    files = tmp_path / "files"
    two = ClickStore.from_parquet(files, folder=tmp_path / "two", buffer_clicks=15_000)
    assert len(disk.held_out) == 10 < len(memory.held_out)
    assert not measured(disk.held_out) - measured(memory.held_out)
    assert two.parts == 2
    assert measured(two.lesson(CONFIG).held_out) == measured(disk.held_out)


def test_half_a_buffer_is_tried_on(tmp_path: Path) -> None:
    """Whole users of the log, in memory."""
    memory, disk = both(tmp_path)
    sample = disk.sequences.sample()
    assert 0 < len(sample.rows) < memory.clicks / 2
    assert not lines(sample) - lines(memory.sequences)


def test_a_checkpoint_outlives_its_store(tmp_path: Path) -> None:
    """Sorted again after a kill, it is the same training; of other clicks or parts, another."""

    def purpose(seed: int = 0, buffer: int = BUFFER) -> Purpose:
        files = write_files(tmp_path / "files", seed=seed)
        folder = tmp_path / "store"
        store = ClickStore.from_parquet(files, folder=folder, buffer_clicks=buffer)
        return Purpose.of(store.lesson(CONFIG).sequences, ITEMS, CONFIG)

    assert purpose() == purpose()
    assert purpose() != purpose(seed=1)
    assert purpose() != purpose(buffer=BUFFER * 2)  # whose batches would be others


@pytest.mark.parametrize("buffer", [10, 1_000_000])
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, buffer: int) -> None:
    """The second of two, whether it lacks a column, has gaps, or is damaged within."""

    def read(columns: dict[str, Any] | None, damage: bool = False) -> str:
        files = write_files(tmp_path / "files")
        bad = files / "bad.parquet"
        if columns is not None:
            pq.write_table(pa.table(columns), bad)
        if damage:
            data = bytearray(bad.read_bytes())
            data[4:400] = bytes(396)
            bad.write_bytes(data)
        with pytest.raises(ClickLogError) as caught:
            read_clicks(files, folder=tmp_path / "store", buffer_clicks=buffer)
        return str(caught.value)

    some = {"user_id": ["a"] * 99, "item_id": ["x"] * 99, "timestamp": list(range(99))}
    lacking = {name: column for name, column in some.items() if name != "timestamp"}
    said = read(lacking)
    assert "bad.parquet has no column timestamp or timestamp_ms; it has user_id, item_id" in said
    said = read(some | {"item_id": [None, *some["item_id"][1:]]})
    assert "bad.parquet: column item_id is empty in 1 rows, among rows 0 to 98" in said
    said = read(some | {"item_id": [0.5] * 99})
    assert "bad.parquet: column item_id holds double" in said
    said = read(some, damage=True)
    assert "bad.parquet cannot be read as Parquet" in said


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    """Not an empty log."""
    with pytest.raises(ClickLogError, match=rf"{tmp_path} holds no file"):
        read_clicks(tmp_path, folder=tmp_path / "store", buffer_clicks=10)


def test_a_store_cut_short_is_named(tmp_path: Path) -> None:
    """A full disk must not become zeros."""
    _, disk = both(tmp_path)
    path = tmp_path / "store" / "items.int32"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ClickLogError, match=r"items\.int32 is shorter"):
        list(disk.sequences.blocks())


def test_a_sample_is_all_clicks_of_some_users(tmp_path: Path) -> None:
    """For comparisons that need the log itself: whole users, their items by name."""
    rng = np.random.default_rng(0)
    rows = [
        (int(user), f"i{item}", n)
        for n, (user, item) in enumerate(rng.integers(50, size=(2000, 2)))
    ]
    users, items, times = map(list, zip(*rows, strict=True))
    path = tmp_path / "clicks.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
    whole = ClickLog.from_parquet(path)
    some = ClickStore.from_parquet(path, folder=tmp_path / "store", buffer_clicks=4000).sample()
    assert 0 < len(some.user_ids) < len(whole.user_ids)

    def by_user(log: ClickLog) -> set[tuple[tuple[str, int], ...]]:
        return {
            tuple(
                (log.item_ids[log.items[at]], int(log.timestamps_ms[at]))
                for at in np.flatnonzero(log.users == user)
            )
            for user in range(len(log.user_ids))
        }

    assert by_user(some) < by_user(whole)
