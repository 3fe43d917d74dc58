"""Milvus Lite as we run it: what was acknowledged is read and kept, whatever other threads do."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_lite.db import MilvusLite
from milvus_lite.engine import collection as package

from deploy.local_milvus import LocalMilvusLite
from encoder import milvus_lite_files as files
from encoder.interest_index import InterestIndex
from encoder.milvus_lite import SafeCollection
from encoder.milvus_lite_memory import ColumnMemTable
from encoder.settings import MilvusSettings
from encoder.turns import SWITCH_INTERVAL_S
from tests.lite_rows import IDS, made, versions

reading = pytest.mark.parametrize(
    "read",
    [
        lambda rows: rows.get(IDS),
        lambda rows: rows.query('id >= ""', output_fields=["version"]),
        lambda rows: rows.search([[1.0, 0.0]], top_k=100)[0],
        lambda rows: range(rows.num_entities),
    ],
    ids=["get", "query", "search", "count"],
)


@pytest.fixture
def rows(lite_database: MilvusLite) -> SafeCollection:
    """A collection with 40 rows, all of them in memory."""
    return made(lite_database)


@reading
def test_rows_that_move_into_a_file_during_a_read_are_read(
    rows: SafeCollection, read: Callable[[SafeCollection], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave memory after the reader looked for files, and before it looks there."""
    look, moved = rows._read_snapshot, []

    def look_and_move() -> Any:
        found = look()
        if not moved:
            moved.append(True)
            rows.flush()
        return found

    monkeypatch.setattr(rows, "_read_snapshot", look_and_move)
    monkeypatch.setattr(rows, "_segments_snapshot", lambda: look_and_move()[0])
    assert len(read(rows)) == len(IDS)
    assert moved


@reading
def test_a_read_waits_for_rows_that_are_on_their_way_into_a_file(
    rows: SafeCollection, read: Callable[[SafeCollection], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment when they are in neither."""
    on_their_way, go_on = threading.Event(), threading.Event()

    def open_log(*args: Any, **kwargs: Any) -> Any:
        on_their_way.set()
        go_on.wait(10)
        return log(*args, **kwargs)

    log = package.WAL
    monkeypatch.setattr(package, "WAL", open_log)
    with ThreadPoolExecutor() as pool:
        moving = pool.submit(rows.flush)
        assert on_their_way.wait(10)
        asked = pool.submit(read, rows)
        time.sleep(0.1)
        go_on.set()
        assert len(asked.result()) == len(IDS)
        moving.result()


def test_a_read_ends_though_rows_move_all_the_time(
    rows: SafeCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end writers wait for it."""
    look, pool, written = rows._read_snapshot, ThreadPoolExecutor(1), [1]

    def look_while_they_move() -> Any:
        written.append(written[-1] + 1)
        rows.insert(versions(written[-1]))
        found = look()
        wait([pool.submit(rows.flush)], timeout=0.5)
        return found

    monkeypatch.setattr(rows, "_read_snapshot", look_while_they_move)
    assert {row["version"] for row in rows.get(IDS)} == {written[-1]}
    pool.shutdown()


def test_what_threads_write_at_the_same_time_is_kept(
    rows: SafeCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows moving into files all the time, and none read older than acknowledged."""
    monkeypatch.setattr(package, "MEMTABLE_MEMORY_LIMIT", 20_000)
    writers = {f"writer-{number}": 0 for number in range(3)}
    ids = {name: [f"{name}-{row}" for row in range(50)] for name in writers}
    until = time.monotonic() + 3

    def write(name: str) -> None:
        while time.monotonic() < until:
            rows.insert(versions(writers[name] + 1, ids[name]))
            writers[name] += 1

    def read(seed: int) -> int:
        rng, reads = np.random.default_rng(seed), 0
        while time.monotonic() < until:
            name = f"writer-{rng.integers(3)}"
            acknowledged = writers[name]
            found = [row["version"] for row in rows.get(ids[name][:4])]
            assert not acknowledged or (len(found) == 4 and min(found) >= acknowledged)
            reads += 1
        return reads

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(write, name) for name in writers]
        assert sum(pool.map(read, range(2))) > 10
        for one in writing:
            one.result()
    for name, version in writers.items():
        assert [row["version"] for row in rows.get(ids[name])] == [version] * 50


@pytest.fixture
def moving(rows: SafeCollection, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Rows on their way into files, which are not written before this is set."""
    write, go_on = files._write_files, threading.Event()

    def write_later(*args: Any) -> Any:
        go_on.wait(20)
        return write(*args)

    monkeypatch.setattr(files, "_write_files", write_later)
    with monkeypatch.context() as patched:
        patched.setattr(package, "MEMTABLE_MEMORY_LIMIT", 1)
        rows.insert(versions(2, IDS[:1]))
    assert rows._move is not None
    yield go_on
    go_on.set()


def test_who_reads_and_writes_does_not_wait_for_files(
    rows: SafeCollection, moving: threading.Event
) -> None:
    """What is written and deleted meanwhile is newer than what the files have."""
    rows.insert(versions(3, IDS[1:3]))
    rows.delete(IDS[3:5])
    expected = dict.fromkeys(IDS, 1) | {IDS[0]: 2, IDS[1]: 3, IDS[2]: 3}
    del expected[IDS[3]], expected[IDS[4]]

    def read() -> None:
        assert {row["id"]: row["version"] for row in rows.get(IDS)} == expected
        assert len(rows.query('id >= ""', output_fields=["id"])) == len(expected)
        assert len(rows.search([[1.0, 0.0]], top_k=100)[0]) == len(expected)
        assert rows.num_entities == len(expected)

    read()
    assert not rows._segment_cache
    moving.set()
    wait([rows._move._files])  # type: ignore[union-attr]
    read()
    rows.insert(versions(4, ["another"]))
    expected["another"] = 4
    assert rows._move is None
    assert len(rows._segment_cache) == 1
    assert len(rows._memtable._pk_index) == 3
    more = [*IDS, "another"]
    assert {row["id"]: row["version"] for row in rows.get(more)} == expected
    rows.flush()
    assert {row["id"]: row["version"] for row in rows.get(more)} == expected


def test_a_file_is_to_readers_what_the_package_reads_back(
    rows: SafeCollection, moving: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without reading it."""
    monkeypatch.setattr(files, "AT_ONCE", 7)
    moving.set()
    assert rows._move is not None
    (written,) = rows._move.files()
    ours = written.segment
    assert ours is not None
    read = package.Segment.load(ours.file_path, "_default", "id", "vector")
    assert ours.pks == read.pks
    assert ours.pk_to_row == read.pk_to_row
    assert ours.table.equals(read.table)
    for one, other in ((ours.seqs, read.seqs), (ours.vectors, read.vectors)):
        np.testing.assert_array_equal(one, other, strict=True)
    assert (ours.vector_null_mask, read.vector_null_mask) == (None, None)
    assert (ours.partition, ours._vector_field) == (read.partition, read._vector_field)


@pytest.mark.parametrize("moment", ["not written", "written", "taken over"])
def test_a_crash_while_rows_move_loses_none(
    rows: SafeCollection, moving: threading.Event, tmp_path: Path, moment: str
) -> None:
    """Before there are files of them, before anything names the files, and when they have left."""
    rows.insert(versions(3, IDS[1:2]))
    if moment != "not written":
        moving.set()
        wait([rows._move._files])  # type: ignore[union-attr]
    if moment == "taken over":
        rows.insert(versions(3, IDS[1:2]))
        assert rows._move is None
    shutil.copytree(tmp_path / "lite.db", tmp_path / "left.db", ignore=lambda *_: {"LOCK"})
    left = MilvusLite(str(tmp_path / "left.db"))
    found = left.get_collection("rows")
    found.load()
    expected = dict.fromkeys(IDS, 1) | {IDS[0]: 2, IDS[1]: 3}
    assert {row["id"]: row["version"] for row in found.get(IDS)} == expected
    left.close()


def test_logs_with_too_much_are_made_a_file_of_when_they_are_opened(
    rows: SafeCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody writes afterwards."""
    shutil.copytree(tmp_path / "lite.db", tmp_path / "left.db", ignore=lambda *_: {"LOCK"})
    monkeypatch.setattr(package, "WAL_SIZE_LIMIT", 1)
    left = MilvusLite(str(tmp_path / "left.db"))
    found = left.get_collection("rows")
    found.load()
    assert len(found._segment_cache) == 1
    assert len(found.get(IDS)) == len(IDS)
    left.close()


def test_what_is_dropped_while_it_moves_leaves_nothing(
    lite_database: MilvusLite, rows: SafeCollection, moving: threading.Event
) -> None:
    """Neither files nor an open log; and the name is free."""
    assert rows._move is not None
    log = rows._move.log
    moving.set()
    lite_database.drop_collection("rows")
    assert log._closed
    assert not Path(rows.data_dir).exists()
    assert len(made(lite_database).get(IDS)) == len(IDS)


def test_files_that_cannot_be_written_are_told_and_tried_again(
    rows: SafeCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who writes next; memory and its logs keep the rows until then."""

    def full(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(package, "MEMTABLE_MEMORY_LIMIT", 1)
        patched.setattr(files, "_write_files", full)
        rows.insert(versions(2))
        wait([rows._move._files])  # type: ignore[union-attr]
        with pytest.raises(OSError, match="no space left"):
            rows.insert(versions(3))
    logs = Path(rows.data_dir, "wal")
    assert len(list(logs.glob("wal_data_*"))) == 2
    assert {row["version"] for row in rows.get(IDS)} == {3}
    rows.flush()
    assert {row["version"] for row in rows.get(IDS)} == {3}
    assert not list(logs.glob("wal_data_*"))


def test_memory_is_bounded_though_files_take_long(
    rows: SafeCollection, moving: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes waits for them once there is twice as much."""
    monkeypatch.setattr(package, "MEMTABLE_MEMORY_LIMIT", rows._memtable.estimated_memory_bytes)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(lambda: [rows.insert(versions(number)) for number in range(3, 30)])
        time.sleep(0.3)
        assert not asked.done()
        assert rows._memtable.estimated_memory_bytes < 3 * package.MEMTABLE_MEMORY_LIMIT
        moving.set()
        asked.result()
    assert {row["version"] for row in rows.get(IDS)} == {29}


def test_memory_is_made_a_file_of_column_by_column(rows: SafeCollection) -> None:
    """The memory that a collection is opened with, and the one after it became a file."""
    assert type(rows._memtable) is ColumnMemTable
    rows.flush()
    assert type(rows._memtable) is ColumnMemTable
    assert {row["id"] for row in rows.get(IDS)} == set(IDS)


def test_what_is_dropped_does_not_become_a_file_first(
    lite_database: MilvusLite, rows: SafeCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads and writes other collections would wait for that; and the name is free."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("rows that are dropped were written")

    with monkeypatch.context() as patched:
        patched.setattr(package, "execute_flush", never)
        lite_database.drop_collection("rows")
    assert not lite_database.has_collection("rows")
    assert not Path(rows.data_dir).exists()
    again = made(lite_database)
    again.flush()
    assert len(again.get(IDS)) == len(IDS)


def test_an_embedded_folder_is_made_of_safe_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process with a path for its store opens it."""
    opened = []
    monkeypatch.setattr(
        SafeCollection, "load", lambda self: opened.append(self) or package.Collection.load(self)
    )
    index = InterestIndex(MilvusSettings(uri=str(tmp_path / "lite.db")))
    index.create_release("one", 2)
    index.close()
    assert opened


def test_the_server_is_the_packages_with_safe_collections_and_short_turns() -> None:
    """As the process itself has it when the package's server begins."""
    code = (
        "import gc, runpy, sys, milvus_lite.cmdline as server, milvus_lite.db as db;"
        "server.main = lambda: print("
        "    sys.getswitchinterval(), gc.get_threshold()[0], db.Collection.__name__);"
        "runpy.run_module('encoder.milvus_lite', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    interval_s, objects, collection = done.stdout.split()
    assert float(interval_s) == pytest.approx(SWITCH_INTERVAL_S)
    assert int(objects) > 10_000  # Python's own is below 3,000; this process may have another
    assert collection == SafeCollection.__name__


@pytest.mark.parametrize("as_packaged", [False, True])
def test_the_local_server_runs_so_unless_told_otherwise(tmp_path: Path, as_packaged: bool) -> None:
    """By its command."""
    with LocalMilvusLite(tmp_path, as_packaged=as_packaged) as lite:
        command = Path(f"/proc/{lite.pid}/cmdline").read_text().split("\0")
    assert ("encoder.milvus_lite" in command) is not as_packaged
