"""Items worked out in a thread, ahead of their use."""

import threading
from collections.abc import Generator
from contextlib import closing

import pytest

from encoder.read_ahead import read_ahead


def test_items_come_in_order_and_the_source_is_closed() -> None:
    """Nothing is lost at the end, and the source ends in the thread that ran it."""
    ran: list[threading.Thread] = []

    def source() -> Generator[int]:
        try:
            yield from range(100)
        finally:
            ran.append(threading.current_thread())

    assert list(read_ahead(source())) == list(range(100))
    (thread,) = ran
    assert thread is not threading.current_thread()
    thread.join(10)
    assert not thread.is_alive()


def test_the_next_item_is_worked_out_meanwhile_and_not_more_than_asked_for() -> None:
    """The source runs on while an item is used, and then waits."""
    begun: list[int] = []
    third = threading.Event()

    def source() -> Generator[int]:
        for number in range(10):
            begun.append(number)
            if len(begun) == 3:
                third.set()
            yield number

    with closing(read_ahead(source(), most=1)) as items:
        assert next(items) == 0
        assert third.wait(10)  # one is held, one more waits to be taken
        assert begun == [0, 1, 2]


def test_an_error_of_the_source_is_raised_after_what_came_before_it() -> None:
    """As if there were no thread."""

    def source() -> Generator[int]:
        yield 1
        raise ValueError("offset 7")

    items = read_ahead(source())
    assert next(items) == 1
    with pytest.raises(ValueError, match="offset 7"):
        next(items)


def test_a_source_that_is_no_longer_wanted_is_closed() -> None:
    """Also while it waits for somebody to take its next item."""
    closed = threading.Event()

    def source() -> Generator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with closing(read_ahead(source())) as items:
        next(items)
    assert closed.wait(10)
