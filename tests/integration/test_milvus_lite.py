"""Milvus Lite as we run it: what was acknowledged is read and kept, whatever other threads do."""

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
from milvus_lite import CollectionSchema, DataType, FieldSchema
from milvus_lite.db import MilvusLite
from milvus_lite.engine import collection as package

from deploy.local_milvus import LocalMilvusLite
from encoder.interest_index import InterestIndex
from encoder.milvus_lite import SafeCollection, use_safe_collections
from encoder.milvus_lite_memory import ColumnMemTable
from encoder.settings import MilvusSettings
from encoder.turns import SWITCH_INTERVAL_S

_IDS = [f"row-{number}" for number in range(40)]

reading = pytest.mark.parametrize(
    "read",
    [
        lambda rows: rows.get(_IDS),
        lambda rows: rows.query('id >= ""', output_fields=["version"]),
        lambda rows: rows.search([[1.0, 0.0]], top_k=100)[0],
        lambda rows: range(rows.num_entities),
    ],
    ids=["get", "query", "search", "count"],
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[MilvusLite]:
    """An empty folder."""
    use_safe_collections()
    opened = MilvusLite(str(tmp_path / "lite.db"))
    yield opened
    opened.close()


@pytest.fixture
def rows(database: MilvusLite) -> SafeCollection:
    """A collection with 40 rows, all of them in memory."""
    return made(database)


def made(database: MilvusLite) -> SafeCollection:
    fields = [
        FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=40),
        FieldSchema("version", DataType.INT64),
        FieldSchema("vector", DataType.FLOAT_VECTOR, dim=2),
    ]
    collection = database.create_collection("rows", CollectionSchema(fields=fields))
    collection.load()
    collection.insert(versions(1))
    assert isinstance(collection, SafeCollection)
    return collection


def versions(version: int, ids: list[str] = _IDS) -> list[dict[str, Any]]:
    return [{"id": one, "version": version, "vector": [1.0, version]} for one in ids]


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
    assert len(read(rows)) == len(_IDS)
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
        assert len(asked.result()) == len(_IDS)
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
    assert {row["version"] for row in rows.get(_IDS)} == {written[-1]}
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


def test_memory_is_made_a_file_of_column_by_column(rows: SafeCollection) -> None:
    """The memory that a collection is opened with, and the one after it became a file."""
    assert type(rows._memtable) is ColumnMemTable
    rows.flush()
    assert type(rows._memtable) is ColumnMemTable
    assert {row["id"] for row in rows.get(_IDS)} == set(_IDS)


def test_what_is_dropped_does_not_become_a_file_first(
    database: MilvusLite, rows: SafeCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads and writes other collections would wait for that; and the name is free."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("rows that are dropped were written")

    with monkeypatch.context() as patched:
        patched.setattr(package, "execute_flush", never)
        database.drop_collection("rows")
    assert not database.has_collection("rows")
    assert not Path(rows.data_dir).exists()
    again = made(database)
    again.flush()
    assert len(again.get(_IDS)) == len(_IDS)


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
