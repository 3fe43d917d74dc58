"""Windows read and written in bulk are those of the definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.packed_window import EMPTY, ItemCodes, pack, unpack
from consumers.window_wire import CorruptAt, _from_sound_wires, from_wires, to_wires
from encoder.window import CorruptWindow, Window, from_wire, to_wire, window_of

ids = st.sampled_from(["a", "b", "é", "zz", "日本", "x" * 256])
clicks = st.lists(st.tuples(st.integers(1, 12), ids), max_size=9)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    return window_of(draw(clicks), length=6, erased_at_ms=draw(st.integers(0, 12)))


@given(st.lists(windows(), max_size=6))
def test_many_are_written_as_each_alone(given_windows: list[Window]) -> None:
    """Empty windows are removals."""
    codes = ItemCodes()
    written = to_wires([pack(window, codes) for window in given_windows], codes)
    assert written == [None if one.empty else to_wire(one) for one in given_windows]


@given(st.lists(windows(), max_size=6), st.lists(ids))
def test_many_are_read_as_each_alone(given_windows: list[Window], known: list[str]) -> None:
    """Whatever items are known already; and without help of the slow way."""
    codes = ItemCodes()
    for item in known:
        codes.code(item)
    values = [to_wire(window) for window in given_windows]
    packed = _from_sound_wires(values, codes)
    assert packed is not None
    assert [unpack(one, codes) for one in packed] == given_windows
    assert from_wires(values, codes) == packed


@given(st.lists(windows(), min_size=1, max_size=4), st.data())
def test_damage_is_found_where_it_is(given_windows: list[Window], data: st.DataObject) -> None:
    """A changed byte, a byte too many or too few: refused just where `from_wire` refuses it."""
    values = [to_wire(window) for window in given_windows]
    position = data.draw(st.integers(0, len(values) - 1))
    value = bytearray(values[position])
    at = data.draw(st.integers(0, len(value) - 1))
    damage = data.draw(st.sampled_from(["cut", "longer", "changed"]))
    if damage == "cut":
        del value[at:]
    elif damage == "longer":
        value.insert(at, data.draw(st.integers(0, 255)))
    else:
        value[at] = data.draw(st.integers(0, 255))
    values[position] = bytes(value)
    codes = ItemCodes()
    try:
        expected = [from_wire(value) for value in values]
    except CorruptWindow as exc:
        with pytest.raises(CorruptAt, match=str(exc)[:10].replace("(", ".")) as raised:
            from_wires(values, codes)
        assert raised.value.position == position
    else:
        assert [unpack(one, codes) for one in from_wires(values, codes)] == expected


def test_two_windows_whose_damages_make_up_for_each_other_are_refused() -> None:
    """One id's length one too large, the next window's one too small: the sums agree."""
    first = bytearray(to_wire(Window(((5, "ab"),))))
    second = bytearray(to_wire(Window(((5, "cd"),))))
    first[-4], second[-4] = 3, 1
    with pytest.raises(CorruptAt) as raised:
        from_wires([bytes(first), bytes(second)], ItemCodes())
    assert raised.value.position == 0


@pytest.mark.parametrize(
    "window",
    [
        Window(((2**63 - 1, "a"), (-(2**63), "b"))),
        Window(((2, "a"), (1, "b"))),
        Window(((1, "b"), (1, "a"))),
        Window(((1, "a"), (1, "a"))),
    ],
)
def test_clicks_out_of_order_are_refused(window: Window) -> None:
    """In time, and in item where the time is the same."""
    sound = to_wire(Window(((1, "a"),)))
    with pytest.raises(CorruptAt, match="out of order"):
        from_wires([sound, to_wire(window)], ItemCodes())


def test_nothing_is_nothing() -> None:
    """No windows at all, and one of which nothing is known."""
    codes = ItemCodes()
    assert from_wires([], codes) == []
    assert to_wires([], codes) == []
    assert to_wires([EMPTY], codes) == [None]
