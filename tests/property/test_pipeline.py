"""Whatever fails and however slowly: order, no step after a failure, nothing forgotten."""

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.pipeline import Pipeline

STEPS = 3


class Refused(Exception):  # noqa: N818
    pass


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(0, 6),
    failing=st.sets(st.tuples(st.integers(0, 5), st.integers(0, STEPS - 1)), max_size=3),
    slow=st.sets(st.tuples(st.integers(0, 5), st.integers(0, STEPS - 1)), max_size=6),
    most=st.integers(0, 3),
)
def test_items_go_in_order_and_stop_together(
    count: int, failing: set[tuple[int, int]], slow: set[tuple[int, int]], most: int
) -> None:
    """What finished and what did not are all items, in order, cut at the first that failed."""
    done: list[tuple[int, int]] = []
    lock = threading.Lock()

    def step(number: int, item: int) -> None:
        if (item, number) in slow:
            time.sleep(0.002)
        if (item, number) in failing:
            raise Refused((item, number))
        with lock:
            done.append((item, number))

    pipeline: Pipeline[int] = Pipeline(
        [lambda item, number=number: step(number, item) for number in range(STEPS)],  # type: ignore[misc]
        "test",
    )
    try:
        for item in range(count):
            pipeline.wait(most)
            pipeline.submit(item)
        pipeline.wait(0)
        finished, failure = pipeline.take_finished(), pipeline.failure
        unfinished = [] if failure is None else pipeline.take_unfinished()
    finally:
        pipeline.close(10)
    assert finished + unfinished == list(range(count))
    first = min((item for item, _ in failing if item < count), default=count)
    if failure is None:
        assert first == count
    else:
        # An item behind may fail first; then those before it still finish or fail themselves.
        assert isinstance(failure, Refused)
        assert unfinished[0] == failure.args[0][0]
        assert len(finished) <= first
    for number in range(STEPS):
        assert [item for item, at in done if at == number] == sorted(
            item for item, at in done if at == number
        )
    for item in finished:
        assert [at for one, at in done if one == item] == list(range(STEPS))
    for item in unfinished:
        assert (item, STEPS - 1) not in done


def test_steps_of_different_items_overlap() -> None:
    """The second item's first step runs while the first item is at its second."""
    both = threading.Barrier(2, timeout=10)

    def first(item: int) -> None:
        if item == 1:
            both.wait()

    def second(item: int) -> None:
        if item == 0:
            both.wait()

    pipeline: Pipeline[int] = Pipeline([first, second], "test")
    pipeline.submit(0)
    pipeline.submit(1)
    pipeline.wait(0)
    assert pipeline.failure is None
    pipeline.close(10)


def test_it_goes_on_after_a_failure() -> None:
    """What failed may be submitted again."""
    broken = [True]

    def step(item: str) -> None:
        if broken[0]:
            raise Refused(item)

    pipeline: Pipeline[str] = Pipeline([step], "test")
    for item in ("a", "b"):
        pipeline.submit(item)
    pipeline.wait(0)
    assert isinstance(pipeline.failure, Refused)
    assert pipeline.take_unfinished() == ["a", "b"]
    broken[0] = False
    for item in ("a", "b"):
        pipeline.submit(item)
    pipeline.wait(0)
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

    pipeline: Pipeline[str] = Pipeline([first, lambda item: done.append("second")], "test")
    pipeline.submit("a")
    assert begun.wait(10)
    pipeline.close(0.01)
    assert done == []
    threading.Timer(0.05, end.set).start()
    pipeline.close(10)
    assert done == ["a"]
