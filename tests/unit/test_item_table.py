"""Items in the reader's memory: exact, of one release, and replaced by the next one's."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from encoder.errors import Unavailable
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


def test_there_are_no_more_than_there_are() -> None:
    """A limit beyond the number of items."""
    (hits,) = ONE.nearest(np.ones((1, 2), np.float32), 50)
    assert [hit.id for hit in hits] == ["one"]
    nothing = ItemTable([], np.zeros((0, 2), np.float32))
    assert nothing.nearest(np.ones((2, 2), np.float32), 50) == [[], []]


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
