"""Items in the reader's memory: exact, of one release, and replaced by the next one's."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from encoder.errors import Unavailable
from encoder.item_index import ItemChanges
from lookup import item_table
from lookup.item_table import ItemTable, ItemTables
from tests.deployment import wait_until

ONE = ItemTable(["one"], np.ones((1, 2), np.float32))
TWO = ItemTable(["two"], np.ones((1, 2), np.float32))


def test_the_nearest_are_those_of_brute_force() -> None:
    """For every vector by itself, best first."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((1000, 8)).astype(np.float32)
    vectors = rng.standard_normal((3, 8)).astype(np.float32)
    found = ItemTable([f"item-{row}" for row in range(1000)], items).nearest(vectors, 50)
    for hits, vector in zip(found, vectors, strict=True):
        scores = items @ vector
        assert [hit.id for hit in hits] == [f"item-{row}" for row in np.argsort(-scores)[:50]]
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores)[:-51:-1], rel=1e-5)


def test_the_nearest_to_any_count_with_the_nearest_vector() -> None:
    """Each item once, with its best score."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((3000, 8)).astype(np.float32)
    vectors = rng.standard_normal((3, 8)).astype(np.float32)
    hits = ItemTable([f"item-{row}" for row in range(3000)], items).nearest_to_any(vectors, 50)
    scores = (items @ vectors.T).max(axis=1)
    assert [hit.id for hit in hits] == [f"item-{row}" for row in np.argsort(-scores)[:50]]
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores)[:-51:-1], rel=1e-5)


def test_there_are_no_more_than_there_are() -> None:
    """A limit beyond the number of items."""
    (hits,) = ONE.nearest(np.ones((1, 2), np.float32), 50)
    assert [hit.id for hit in hits] == ["one"]
    nothing = ItemTable([], np.zeros((0, 2), np.float32))
    assert nothing.nearest(np.ones((2, 2), np.float32), 50) == [[], []]
    assert nothing.nearest_to_any(np.ones((2, 2), np.float32), 50) == []
    assert ONE.nearest_to_any(np.zeros((0, 2), np.float32), 50) == []


def test_only_the_newest_release_is_there() -> None:
    """Another one's items are never taken for it, not even when they arrive late."""
    slow = threading.Event()

    def load(release: str, superseded: Callable[[], bool]) -> ItemTable:
        if release == "one":
            slow.wait(10)
        return ONE if release == "one" else TWO

    tables = ItemTables(load)
    tables.want("one")
    tables.want("two")
    assert tables.get("one") is tables.get("two") is None
    slow.set()
    wait_until(lambda: tables.get("two") is not None, "the second table")
    tables.close()
    assert tables.get("two") is TWO
    assert tables.get("one") is None


def test_a_release_is_loaded_once_and_again_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not at once."""
    asked: list[str] = []

    def load(release: str, superseded: Callable[[], bool]) -> ItemTable:
        asked.append(release)
        if len(asked) == 1:
            raise Unavailable("away")
        return ONE

    tables = ItemTables(load)
    tables.want("one")
    wait_until(lambda: bool(asked) and not tables.loading, "the failure")
    tables.want("one")
    assert asked == ["one"]
    monkeypatch.setattr(item_table, "_RETRY_AFTER_S", 0.0)
    time.sleep(0.001)
    tables.want("one")
    tables.close()
    tables.want("one")
    assert asked == ["one", "one"]
    assert tables.get("one") is ONE


def changes(*said: tuple[str, float | None, int, int]) -> ItemChanges:
    """Item, the length of its vector or None where it was withdrawn, partition and offset."""
    return ItemChanges(
        item_ids=[item_id for item_id, _, _, _ in said],
        vectors=np.array([[length or 0.0, 0.0] for _, length, _, _ in said], np.float32),
        withdrawn=np.array([length is None for _, length, _, _ in said]),
        partitions=np.array([partition for _, _, partition, _ in said]),
        offsets=np.array([offset for _, _, _, offset in said]),
    )


def test_a_table_takes_changes_on() -> None:
    """Items are added, replaced and withdrawn; the table before stays as it was."""
    before = ItemTable(["a", "b", "c"], np.diag([1.0, 1.0]).astype(np.float32)[[0, 0, 1]])
    asked = np.array([[1.0, 0.0]], np.float32)

    def found(table: ItemTable, limit: int = 9) -> list[tuple[str, float]]:
        (hits,) = table.nearest(asked, limit)
        return [(hit.id, hit.score) for hit in hits]

    after = before.with_changes(changes(("d", 3.0, 0, 4), ("a", 2.0, 1, 7), ("b", None, 0, 3)))
    assert found(after) == [("d", 3.0), ("a", 2.0), ("c", 0.0)]
    assert found(after, 1) == [("d", 3.0)]
    assert len(after) == 3
    assert after.seen == {0: 5, 1: 8}
    last = after.with_changes(changes(("d", None, 0, 6), ("a", None, 1, 8), ("b", 4.0, 0, 9)))
    assert found(last) == [("b", 4.0), ("c", 0.0)]
    assert last.seen == {0: 10, 1: 9}
    assert sorted(found(before)) == [("a", 1.0), ("b", 1.0), ("c", 0.0)]
    assert before.seen == {}
    nothing = last.with_changes(changes(("b", None, 0, 11), ("c", None, 0, 12)))
    assert found(nothing) == []


def test_a_loaded_table_is_followed_until_another_release_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that does not answer is asked again."""
    monkeypatch.setattr(item_table, "_FOLLOW_S", 0.001)
    asked: list[str] = []

    def changed(release: str, table: ItemTable) -> ItemTable | None:
        asked.append(release)
        if len(asked) == 1:
            raise Unavailable("away")
        return TWO if release == "one" and table is ONE else None

    tables = ItemTables(lambda release, superseded: ONE, changed)
    tables.want("one")
    wait_until(lambda: tables.get("one") is TWO, "the change")
    tables.want("two")
    wait_until(lambda: tables.get("two") is ONE, "the other release")
    wait_until(lambda: asked[-1] == "two", "what changed of it")
    tables.close()
    assert not tables.loading
