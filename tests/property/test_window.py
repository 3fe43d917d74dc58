"""Windows are a function of the set of clicks: arrival, replay and grouping do not matter."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.packed_window import EMPTY, ItemCodes, click_columns, merge_clicks, pack, unpack
from encoder.window import CorruptWindow, Window, from_wire, merge, to_wire, window_of

lengths = st.integers(1, 6)
clicks = st.tuples(st.integers(1, 12), st.sampled_from(["a", "b", "c", "é", "zz"]))
click_lists = st.lists(clicks, max_size=25)
erasures = st.integers(0, 12)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    return window_of(draw(click_lists), length=6, erased_at_ms=draw(erasures))


@given(click_lists, lengths, erasures)
def test_a_window_is_bounded_ordered_distinct_and_after_the_erasure(
    given_clicks: list[tuple[int, str]], length: int, erased: int
) -> None:
    """No input breaks the form of a window."""
    window = window_of(given_clicks, length=length, erased_at_ms=erased)
    assert len(window.clicks) <= length
    assert list(window.clicks) == sorted(set(window.clicks))
    assert all(timestamp > erased for timestamp, _ in window.clicks)
    left_out = {c for c in given_clicks if c[0] > erased} - set(window.clicks)
    assert all(c < window.clicks[0] for c in left_out)


@given(windows(), windows(), windows())
def test_merging_is_commutative_associative_and_idempotent(a: Window, b: Window, c: Window) -> None:
    """The three laws that make at-least-once delivery harmless."""
    ab = merge(a, b, length=6)
    assert ab == merge(b, a, length=6)
    assert merge(ab, c, length=6) == merge(a, merge(b, c, length=6), length=6)
    assert merge(ab, b, length=6) == ab
    assert merge(a, a, length=6) == a


@given(click_lists, lengths, erasures, st.randoms(use_true_random=False), st.data())
def test_any_order_grouping_and_replay_gives_the_window_of_the_set(
    given_clicks: list[tuple[int, str]],
    length: int,
    erased: int,
    rng: random.Random,
    data: st.DataObject,
) -> None:
    """Packed merges of shuffled, repeated, arbitrarily cut batches equal the definition."""
    expected = window_of(given_clicks, length=length, erased_at_ms=erased)
    arrivals = given_clicks + rng.sample(given_clicks, len(given_clicks) // 2)
    rng.shuffle(arrivals)
    codes = ItemCodes()
    packed = EMPTY
    erase_at = data.draw(st.integers(0, len(arrivals)), label="erasure arrives before click")
    position = 0
    while position < len(arrivals):
        if position >= erase_at:
            packed = merge_clicks(packed, [], codes, length=length, erased_at_ms=erased)
        size = data.draw(st.integers(1, 4), label="batch")
        packed = merge_clicks(packed, arrivals[position : position + size], codes, length=length)
        position += size
    packed = merge_clicks(packed, [], codes, length=length, erased_at_ms=erased)
    assert unpack(packed, codes) == expected


@given(windows(), click_lists, erasures)
def test_an_unchanged_window_is_the_same_object(
    window: Window, given_clicks: list[tuple[int, str]], erased: int
) -> None:
    """The update loop drops users by this identity."""
    codes = ItemCodes()
    before = pack(window, codes)
    after = merge_clicks(before, given_clicks, codes, length=6, erased_at_ms=erased)
    unchanged = merge(window, Window(tuple(given_clicks), erased), length=6) == window
    assert (after is before) == unchanged


@given(windows())
def test_wire_and_packed_forms_keep_everything(window: Window) -> None:
    """What is written is what is read."""
    codes = ItemCodes()
    assert from_wire(to_wire(window)) == window
    assert unpack(pack(window, codes), codes) == window


@given(windows(), st.data())
def test_a_damaged_wire_window_is_refused_or_whole(window: Window, data: st.DataObject) -> None:
    """Truncated bytes never pass for a window."""
    wire = to_wire(window)
    cut = data.draw(st.integers(0, len(wire) - 1))
    with pytest.raises(CorruptWindow):
        from_wire(wire[:cut])
    with pytest.raises(CorruptWindow):
        from_wire(wire + b"x")


def test_a_wire_window_from_another_version_or_out_of_order_is_refused() -> None:
    """The message says what is wrong."""
    with pytest.raises(CorruptWindow, match="version 9"):
        from_wire(b"\x09" + to_wire(Window())[1:])
    with pytest.raises(CorruptWindow, match="out of order"):
        from_wire(to_wire(Window(((2, "a"), (1, "b")))))
    with pytest.raises(CorruptWindow, match="before the erasure"):
        from_wire(to_wire(Window(((2, "a"),), erased_at_ms=2)))


def test_columns_hold_every_windows_clicks_in_turn() -> None:
    """Windows of 0, 1 and 2 clicks."""
    codes = ItemCodes()
    packed = [
        pack(window, codes)
        for window in (Window(), Window(((5, "b"),)), Window(((6, "a"), (7, "b")), 3))
    ]
    columns, counts = click_columns(packed)
    assert counts.tolist() == [0, 1, 2]
    assert columns["timestamp_ms"].tolist() == [5, 6, 7]
    assert [codes.item(code) for code in columns["code"].tolist()] == ["b", "a", "b"]
