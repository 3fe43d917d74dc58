"""Whatever fails and however slowly: order, no step after a failure, nothing forgotten."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.pipeline import Pipeline


class Refused(Exception):  # noqa: N818
    pass


ITEMS = st.integers(0, 7)


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(0, 8),
    failing=st.sets(st.tuples(ITEMS, st.integers(0, 1)), max_size=3),
    slow=st.sets(st.tuples(ITEMS, st.integers(0, 1)), max_size=6),
    apart=st.sets(ITEMS, max_size=3),
    most=st.integers(1, 4),
)
def test_items_go_in_order_and_stop_together(
    count: int,
    failing: set[tuple[int, int]],
    slow: set[tuple[int, int]],
    apart: set[int],
    most: int,
) -> None:
    """What finished and what did not are all items, in order, cut at the first that failed."""
    firsts: list[int] = []
    seconds: list[list[int]] = []

    def first(item: int) -> None:
        if (item, 0) in slow:
            time.sleep(0.002)
        if (item, 0) in failing:
            raise Refused(item)
        firsts.append(item)

    def second(items: Sequence[int]) -> None:
        if any((item, 1) in slow for item in items):
            time.sleep(0.004)
        if any((item, 1) in failing for item in items):
            raise Refused(items[0])
        seconds.append(list(items))

    pipeline: Pipeline[int] = Pipeline(
        first, second, joins=lambda before, after: after not in apart, name="test"
    )
    try:
        for item in range(count):
            pipeline.wait_for_room(1, most)
            assert pipeline.in_flight < most or pipeline.failure is not None
            pipeline.submit(item)
        pipeline.wait()
        finished, failure = pipeline.take_finished(), pipeline.failure
        unfinished = [] if failure is None else pipeline.take_unfinished()
    finally:
        pipeline.close(10)
    assert finished + unfinished == list(range(count))
    assert firsts == sorted(firsts)
    assert [item for items in seconds for item in items] == finished
    assert all(item not in apart for items in seconds for item in items[1:])
    assert set(finished) <= set(firsts)
    if failure is None:
        assert all(item >= count for item, _ in failing)
    else:
        assert isinstance(failure, Refused)
        assert unfinished[0] == failure.args[0]


def test_the_steps_of_different_items_overlap() -> None:
    """The second item's first step runs while the first item is at its second."""
    both = threading.Barrier(2, timeout=10)

    def first(item: int) -> None:
        if item == 1:
            both.wait()

    def second(items: Sequence[int]) -> None:
        if 0 in items:
            both.wait()

    pipeline: Pipeline[int] = Pipeline(first, second, name="test")
    pipeline.submit(0)
    pipeline.submit(1)
    pipeline.wait()
    assert pipeline.failure is None
    pipeline.close(10)


def test_what_gathers_while_the_second_step_is_busy_goes_through_it_together() -> None:
    """So that a slow second step holds no item up for longer than twice its time."""
    seconds: list[list[int]] = []
    gathered = threading.Event()

    def second(items: Sequence[int]) -> None:
        seconds.append(list(items))
        gathered.wait(10)

    pipeline: Pipeline[int] = Pipeline(lambda item: None, second, name="test")
    pipeline.submit(0)
    while not seconds:
        time.sleep(0.001)
    for item in (1, 2, 3):
        pipeline.wait_for_room(1, 10)
        pipeline.submit(item)
    pipeline.wait_for_room(1, 10)
    gathered.set()
    pipeline.wait()
    pipeline.close(10)
    assert seconds == [[0], [1, 2, 3]]


def test_an_item_heavier_than_all_the_room_goes_alone() -> None:
    """It waits for all before it, and is not refused."""
    pipeline: Pipeline[int] = Pipeline(lambda item: None, lambda items: None, name="test")
    for item in range(3):
        pipeline.wait_for_room(5, 4)
        assert pipeline.in_flight == 0
        pipeline.submit(item, 5)
    pipeline.wait()
    pipeline.close(10)
    assert pipeline.take_finished() == [0, 1, 2]


def test_it_goes_on_after_a_failure() -> None:
    """What failed may be submitted again."""
    broken = [True]

    def step(item: str) -> None:
        if broken[0]:
            raise Refused(item)

    pipeline: Pipeline[str] = Pipeline(step, lambda items: None, name="test")
    for item in ("a", "b"):
        pipeline.submit(item)
    pipeline.wait()
    assert isinstance(pipeline.failure, Refused)
    assert pipeline.take_unfinished() == ["a", "b"]
    broken[0] = False
    for item in ("a", "b"):
        pipeline.submit(item)
    pipeline.wait()
    assert pipeline.failure is None
    assert pipeline.take_finished() == ["a", "b"]
    pipeline.close(10)


def test_closing_waits_for_steps_under_way_but_takes_no_more() -> None:
    """And not for longer than it was told to."""
    begun, end, done = threading.Event(), threading.Event(), list[str]()

    def first(item: str) -> None:
        begun.set()
        end.wait(10)
        done.append(item)

    pipeline: Pipeline[str] = Pipeline(first, lambda items: done.append("second"), name="test")
    pipeline.submit("a")
    assert begun.wait(10)
    pipeline.close(0.01)
    assert done == []
    threading.Timer(0.05, end.set).start()
    pipeline.close(10)
    assert done == ["a"]


@pytest.mark.parametrize(
    "wait", [Pipeline.wait, partial(Pipeline.wait_for_room, weight=1, most=2)], ids=["all", "room"]
)
def test_a_second_step_that_rests_is_hurried_by_whoever_waits(
    wait: Callable[[Pipeline[int]], None],
) -> None:
    """Items gather; to wait for room, or for all of them, ends the rest."""
    seconds: list[list[int]] = []
    pipeline: Pipeline[int] = Pipeline(
        lambda item: None, lambda items: seconds.append(list(items)), rest_s=3600.0, name="test"
    )
    pipeline.submit(0)
    while not seconds:
        time.sleep(0.001)
    for item in (1, 2):
        pipeline.wait_for_room(1, 10)
        pipeline.submit(item)
    pipeline.wait_for_room(1, 10)
    assert seconds == [[0]]
    wait(pipeline)
    assert seconds == [[0], [1, 2]]
    pipeline.close(10)


def test_a_pipeline_that_rests_can_be_closed() -> None:
    """Nobody waits for the rest."""
    seconds: list[int] = []
    pipeline: Pipeline[int] = Pipeline(
        lambda item: None, lambda items: seconds.extend(items), rest_s=3600.0, name="test"
    )
    for item in (0, 1):
        pipeline.submit(item)
        while not seconds:
            time.sleep(0.001)
    pipeline.wait_for_room(1, 10)
    pipeline.close(10)
    assert seconds == [0]
