"""Writers wait for readers that are too far behind, and for nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from encoder.errors import Unavailable
from encoder.pace import Pace
from tests.deployment import wait_until

MOST_S = 3.0


class Store:
    """Rows become readable when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0
        self._answers: queue.Queue[Exception | None] = queue.Queue()

    def read(self) -> None:
        self.reads += 1
        answer = self._answers.get(timeout=20)
        if answer is not None:
            raise answer

    def answer(self, error: Exception | None = None) -> None:
        self._answers.put(error)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def pace(store: Store) -> Iterator[Pace]:
    made = Pace(store.read, most_s=MOST_S, every_s=0.0, clock=lambda: store.now)
    yield made
    made.close()
    store.answer()


def waiting(pace: Pace, until: float) -> threading.Thread:
    thread = threading.Thread(target=pace.wait, args=(until,), daemon=True)
    thread.start()
    return thread


def test_nobody_reads_where_nobody_writes(store: Store, pace: Pace) -> None:
    """And nobody waits."""
    pace.wait(until=float("inf"))
    assert (store.reads, pace.behind_s) == (0, 0.0)


def test_a_writer_waits_until_readers_are_near(store: Store, pace: Pace) -> None:
    """It does not while they are as near as they may be."""
    pace.wrote()
    wait_until(lambda: store.reads == 1, "a read")
    store.now += MOST_S
    pace.wait(until=float("inf"))
    store.now += 0.1
    assert pace.behind_s == pytest.approx(MOST_S + 0.1)
    writer = waiting(pace, until=float("inf"))
    writer.join(0.3)
    assert writer.is_alive()
    store.answer()
    writer.join(20)
    assert not writer.is_alive()
    assert pace.behind_s == 0


def test_a_writer_does_not_wait_for_ever(store: Store, pace: Pace) -> None:
    """There is a time at which it goes on."""
    pace.wrote()
    wait_until(lambda: store.reads == 1, "a read")
    store.now += 10
    writer = waiting(pace, until=store.now + 5)
    writer.join(0.3)
    assert writer.is_alive()
    store.now += 5
    writer.join(20)
    assert not writer.is_alive()


def test_a_read_that_fails_is_tried_again(store: Store, pace: Pace) -> None:
    """Readers are as far behind as they were since the first try."""
    pace.wrote()
    wait_until(lambda: store.reads == 1, "a read")
    store.now += 10
    store.answer(Unavailable("timed out"))
    wait_until(lambda: store.reads == 2, "another read")
    assert pace.behind_s == 10
    store.answer()
    wait_until(lambda: pace.behind_s == 0, "readers")


def test_what_is_written_during_a_read_is_waited_for_by_the_next(store: Store, pace: Pace) -> None:
    """And so on, until nothing more is written."""
    pace.wrote()
    wait_until(lambda: store.reads == 1, "a read")
    pace.wrote()
    store.now += 10
    store.answer()
    wait_until(lambda: store.reads == 2, "another read")
    assert pace.behind_s == 0
    store.answer()
    wait_until(lambda: pace._since is None and not pace._written, "both reads")
    assert store.reads == 2
