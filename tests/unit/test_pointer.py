"""Which release is in use: never older than it may be, and read while nobody waits."""

import threading
from collections.abc import Callable

import pytest

from encoder.errors import Unavailable
from encoder.interest_index import ReleaseInUse
from lookup.pointer import Pointer

OLD, NEW = ReleaseInUse("old", 4), ReleaseInUse("new", 4)


class Store:
    """Answers when it is allowed to."""

    def __init__(self, answer: ReleaseInUse | None = OLD) -> None:
        self.answer: ReleaseInUse | Exception | None = answer
        self.asked = 0
        self.open = threading.Event()
        self.open.set()

    def __call__(self) -> ReleaseInUse | None:
        self.asked += 1
        answer = self.answer
        assert self.open.wait(10.0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come true")


def pointer_at(store: Store) -> tuple[Pointer, Clock]:
    clock = Clock()
    return Pointer(store, ttl_s=1.0, clock=clock), clock


def test_it_is_read_once_while_it_is_young() -> None:
    """Half of its time."""
    store = Store()
    pointer, clock = pointer_at(store)
    assert pointer.get() == OLD
    clock.now += 0.4
    assert pointer.get() == OLD
    assert store.asked == 1


def test_nobody_waits_for_it_to_be_read_again() -> None:
    """What is known counts meanwhile; one question at a time."""
    store = Store()
    pointer, clock = pointer_at(store)
    pointer.get()
    store.answer = NEW
    store.open.clear()
    clock.now += 0.6
    assert [pointer.get(), pointer.get()] == [OLD, OLD]
    until(lambda: store.asked == 2)
    store.open.set()
    until(lambda: pointer.get() == NEW)
    assert store.asked == 2
    clock.now += 0.4  # 0.4 s after it was asked
    assert pointer.get() == NEW
    assert store.asked == 2


def test_it_is_never_older_than_it_may_be() -> None:
    """Whoever asks when it is waits for the answer."""
    store = Store()
    pointer, clock = pointer_at(store)
    pointer.get()
    store.answer = NEW
    clock.now += 1.0
    assert pointer.get() == NEW


def test_its_age_counts_from_the_question() -> None:
    """What came into use while the store answered was not asked for."""
    clock = Clock()

    def slowly() -> ReleaseInUse:
        clock.now += 0.7
        return answers.pop(0)

    answers = [OLD, NEW]
    pointer = Pointer(slowly, ttl_s=1.0, clock=clock)
    assert pointer.get() == OLD
    clock.now += 0.3
    assert pointer.get() == NEW


def test_a_store_that_is_away_is_told_only_when_it_has_to_be() -> None:
    """A question that nobody waits for may fail."""
    store = Store()
    pointer, clock = pointer_at(store)
    pointer.get()
    store.answer = Unavailable("away")
    clock.now += 0.6
    assert pointer.get() == OLD
    pointer.close()
    assert store.asked == 2
    assert pointer.get() == OLD
    clock.now += 0.4
    with pytest.raises(Unavailable):
        pointer.get()


def test_an_answer_to_an_earlier_question_does_not_count() -> None:
    """What was forgotten does not come back."""
    store = Store()
    pointer, clock = pointer_at(store)
    pointer.get()
    store.open.clear()
    clock.now += 0.6
    pointer.get()
    until(lambda: store.asked == 2)  # which will be answered: old
    clock.now += 0.1
    pointer.forget()
    store.answer = NEW
    threading.Timer(0.05, store.open.set).start()
    assert pointer.get() == NEW
    pointer.close()
    assert pointer.get() == NEW


def test_where_none_is_in_use_it_is_read_each_time() -> None:
    """The first release is seen at once."""
    store = Store(None)
    pointer, _ = pointer_at(store)
    assert pointer.get() is None
    store.answer = OLD
    assert pointer.get() == OLD
