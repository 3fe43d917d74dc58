"""Files of Milvus Lite are merged: none is lost, few are left, and nobody waits."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_lite.db import MilvusLite
from milvus_lite.engine.collection import Segment

from encoder import milvus_lite_compaction as compaction
from encoder.milvus_lite import SafeCollection, use_safe_collections
from tests.lite_rows import IDS, made, versions

_FEW = IDS[:6]

some = st.lists(st.sampled_from(_FEW), min_size=1, max_size=4, unique=True)
calls = st.lists(
    st.tuples(st.sampled_from(["insert", "delete"]), some)
    | st.tuples(st.sampled_from(["flush", "flush", "open again"]), st.just([])),
    max_size=25,
)


def settled(rows: SafeCollection) -> None:
    """Wait until all that is due is merged."""
    rows._wait_for_bg(60)


def read(rows: SafeCollection) -> dict[str, int]:
    """The version of each row, which all ways of reading agree on."""
    found = {row["id"]: row["version"] for row in rows.get(IDS)}
    queried = rows.query('id >= ""', output_fields=["version"])
    assert {row["id"]: row["version"] for row in queried} == found
    nearest = rows.search([[1.0, 0.0]], top_k=100, output_fields=["version"])[0]
    assert {hit["id"]: hit["entity"]["version"] for hit in nearest} == found
    assert rows.num_entities == len(found)
    return found


@settings(max_examples=80, deadline=None)
@given(calls)
def test_what_is_read_is_what_was_written(drawn: list[tuple[str, list[str]]]) -> None:
    """Whatever is written, deleted, made a file of, merged and opened again."""
    use_safe_collections()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(compaction, "_FILES", 2)
        database = MilvusLite(f"{folder}/lite.db")
        rows, expected = made(database, _FEW), dict.fromkeys(_FEW, 1)
        for version, (call, ids) in enumerate(drawn, start=2):
            if call == "insert":
                rows.insert(versions(version, ids))
                expected |= dict.fromkeys(ids, version)
            elif call == "delete":
                rows.delete(ids)
                expected = {one: last for one, last in expected.items() if one not in ids}
            elif call == "flush":
                rows.flush()
                settled(rows)
            else:
                database.close()
                database = MilvusLite(f"{folder}/lite.db")
                rows = database.get_collection("rows")
                rows.load()
            assert read(rows) == expected
        database.close()


def files(rows: SafeCollection) -> list[str]:
    """What the folder has of rows and of deletions."""
    return sorted(str(one) for one in Path(rows.data_dir).rglob("*.parquet"))


def test_files_are_few_and_have_only_what_lives(lite_database: MilvusLite) -> None:
    """However often rows are replaced and deleted."""
    rows = made(lite_database)
    for version in range(2, 40):
        rows.insert(versions(version, IDS[:30]))
        rows.delete([IDS[version % 30]])
        rows.flush()
        settled(rows)
        assert len(rows._segment_cache) <= 6
    assert sum(one.num_rows for one in rows._segment_cache.values()) <= 4 * len(IDS)
    assert len(rows._delta_index) <= 4
    assert len(files(rows)) <= 12
    named = rows._manifest.get_all_data_files(), rows._manifest.get_all_delta_files()
    assert len(files(rows)) == sum(len(names) for each in named for names in each.values())
    expected = dict.fromkeys(IDS, 1) | dict.fromkeys(IDS[:30], 39)
    del expected[IDS[39 % 30]]
    assert read(rows) == expected


Held = tuple[threading.Event, threading.Event]


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Set once a merge is about to write its file; and to be set for it to do so."""
    write, began, go_on = compaction.write_data_file, threading.Event(), threading.Event()

    def write_later(*args: Any, **kwargs: Any) -> Any:
        began.set()
        go_on.wait(20)
        return write(*args, **kwargs)

    monkeypatch.setattr(compaction, "write_data_file", write_later)
    yield began, go_on
    go_on.set()


@pytest.fixture
def merging(
    lite_database: MilvusLite, held_back: Held
) -> Iterator[tuple[SafeCollection, threading.Event]]:
    """A merge that is under way, whose file is not written before the event is set."""
    rows, (began, go_on) = made(lite_database), held_back
    for version in range(2, 6):
        rows.flush()
        rows.insert(versions(version, IDS[:30]))
    rows.delete(IDS[:1])
    rows.flush()
    assert began.wait(20)
    yield rows, go_on
    go_on.set()


def test_who_reads_and_writes_does_not_wait_for_a_merge(
    merging: tuple[SafeCollection, threading.Event],
) -> None:
    """What is written, deleted and made a file of meanwhile is not lost by it."""
    rows, go_on = merging
    rows.insert(versions(7, IDS[2:3]))
    rows.delete(IDS[3:4])
    rows.flush()
    rows.delete(IDS[4:5])
    expected = dict.fromkeys(IDS, 1) | dict.fromkeys(IDS[:30], 5) | {IDS[2]: 7}
    for gone in (IDS[0], IDS[3], IDS[4]):
        del expected[gone]
    assert read(rows) == expected
    go_on.set()
    settled(rows)
    assert len(rows._segment_cache) == 3  # four are one, and two came meanwhile
    assert read(rows) == expected


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_at_a_merge_loses_none(
    merging: tuple[SafeCollection, threading.Event], tmp_path: Path, moment: str
) -> None:
    """Before and after the merged file takes the place of the others."""
    rows, go_on = merging
    expected = read(rows)
    if moment == "after":
        go_on.set()
        settled(rows)
    shutil.copytree(tmp_path / "lite.db", tmp_path / "left.db", ignore=lambda *_: {"LOCK"})
    go_on.set()
    left = MilvusLite(str(tmp_path / "left.db"))
    found = left.get_collection("rows")
    found.load()
    assert read(found) == expected
    left.close()


def test_what_is_dropped_while_it_is_merged_leaves_nothing(
    merging: tuple[SafeCollection, threading.Event], lite_database: MilvusLite
) -> None:
    """No file is written into a folder that is gone, and the name is free."""
    rows, go_on = merging
    with ThreadPoolExecutor() as pool:
        dropped = pool.submit(lite_database.drop_collection, "rows")
        wait([dropped], timeout=0.3)
        go_on.set()
        dropped.result()
    rows._bg_executor.shutdown()
    assert not Path(rows.data_dir).exists()
    assert read(made(lite_database)) == dict.fromkeys(IDS, 1)


def test_files_of_a_partition_that_is_dropped_meanwhile_are_forgotten(
    lite_database: MilvusLite, held_back: Held
) -> None:
    """Their merge ends without a file, and what it would have replaced does not come back."""
    rows, (began, go_on) = made(lite_database), held_back
    rows.create_partition("other")
    for version in range(2, 6):
        rows.insert(versions(version, IDS[:3]), "other")
        rows.flush()
    assert began.wait(20)
    rows.drop_partition("other")
    go_on.set()
    settled(rows)
    assert {partition for partition, _ in rows._segment_cache} == {"_default"}
    assert not [one for one in files(rows) if "other" in Path(one).parts]
    rows.insert(versions(9))
    rows.flush()
    assert read(rows) == dict.fromkeys(IDS, 9)


def test_files_are_alike_whose_sizes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest four, each at most twice as large as all that is newer; else none."""

    def sized(*sizes: int) -> list[int]:
        segments = {}
        for age, size in enumerate(sizes):
            one = Segment.__new__(Segment)
            one.pks, one.seqs = [""] * size, np.array([age])
            segments["_default", str(age)] = one
        return sorted(int(name) for _, name in compaction.newest_alike(segments))

    assert sized(9, 9, 9) == []
    assert sized(9, 9, 9, 9) == [0, 1, 2, 3]
    assert sized(90, 9, 9, 9, 9) == [1, 2, 3, 4]
    assert sized(90, 9, 9, 9) == []
    assert sized(70, 9, 9, 9, 9) == [0, 1, 2, 3, 4]
    assert sized(9, 9, 9, 1) == []
