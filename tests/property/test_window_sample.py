"""Who is drawn: users at random, whatever the order they come in, and never more than asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from encoder.window import Window, to_wire
from mindstream.window_sample import WindowSample


def value(number: int) -> bytes:
    return to_wire(Window(((number + 1, f"item-{number}"),)))


def drawn(order: list[int], most: int, seed: int = 0) -> WindowSample:
    sample = WindowSample(most, seed)
    for number in order:
        sample.put(f"user-{number}", value(number))
    return sample


@given(st.permutations(range(40)), st.integers(1, 50))
def test_the_order_of_arrival_does_not_decide_who_is_drawn(order: list[int], most: int) -> None:
    """The same users, and as many as there are places for."""
    sample = drawn(order, most)
    assert len(sample) == min(most, 40)
    assert sample.windows() == drawn(list(range(40)), most).windows()
    assert sample.windows(3) == sample.windows()[:3]


def test_each_user_is_as_likely_as_any_other() -> None:
    """Over 400 draws of 10 from 40, nobody is out of line with 100 times; seeds differ."""
    times: dict[Window, int] = {}
    for seed in range(400):
        for window in drawn(list(range(40)), 10, seed).windows():
            times[window] = times.get(window, 0) + 1
    assert len(times) == 40
    assert sum(times.values()) == 4000
    assert all(55 < often < 145 for often in times.values())  # five standard deviations of 8.7


def test_a_user_who_is_drawn_is_followed() -> None:
    """What changed is told: the window before and after, also when it is removed."""
    sample = WindowSample(5, 0)
    assert sample.put("user-1", value(1)) == (None, value(1))
    assert sample.put("user-1", value(2)) == (value(1), value(2))
    assert sample.put("user-1", None) == (value(2), None)
    assert len(sample) == 0


def test_a_user_whose_window_was_not_kept_does_not_come_back() -> None:
    """A place that falls free is for new users: of others, what came before is not known."""
    sample = drawn(list(range(40)), 10)
    sample.windows()
    kept = [n for n in range(40) if sample.put(f"user-{n}", value(n)) is not None]
    assert len(kept) == 10
    for number in kept:
        sample.put(f"user-{number}", None)
    again = [n for n in range(40) if sample.put(f"user-{n}", value(n)) is not None]
    assert again == kept
