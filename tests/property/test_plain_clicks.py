"""Clicks read many at a time are those that are read one by one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.click import RejectedClick, parse_click
from encoder.plain_clicks import TOGETHER, PlainClicks, parse_plain

T0 = 1_700_000_000_000

users = st.sampled_from(["u", "é", "日本", "a,b", '"', "{", "x" * 64])
items = st.sampled_from(["i", "}", "],[", "\\", "y" * 64])
extras = st.dictionaries(
    st.sampled_from(["event_id", "page", "more"]),
    st.none() | st.text(max_size=3) | st.lists(st.integers(0, 9), max_size=2),
    max_size=2,
)


def value_of(user: str, item: str, at: int, extra: dict[str, object]) -> bytes:
    return json.dumps({"user_id": user, "item_id": item, "timestamp": at} | extra).encode()


plain = st.builds(
    lambda user, item, at, extra: (user.encode(), value_of(user, item, T0 + at, extra)),
    users,
    items,
    st.integers(0, 50),
    extras.filter(lambda extra: isinstance(extra.get("event_id"), str | None)),
)
odd = st.tuples(
    st.none() | st.just(b"u") | st.binary(max_size=3),
    st.none()
    | st.binary(max_size=20)
    | st.builds(value_of, users, items | st.just(""), st.integers(0, 2 * T0), extras),
)


def one_by_one(records: list[tuple[bytes | None, bytes | None]], latest_ms: int) -> object:
    """All clicks as columns; None where one is rejected or none at all."""
    clicks = []
    for key, value in records:
        try:
            clicks.append(parse_click(key, value or b"", latest_ms=latest_ms))
        except RejectedClick:
            return None
    return PlainClicks(*list(zip(*clicks, strict=True))[:3])


def together(records: list[tuple[bytes | None, bytes | None]], latest_ms: int) -> object:
    keys, values = [key for key, _ in records], [value for _, value in records]
    return parse_plain(keys, values, [latest_ms] * len(records))


@given(st.lists(plain, min_size=1, max_size=8))
def test_plain_clicks_are_read_together(records: list[tuple[bytes | None, bytes | None]]) -> None:
    """With spaces, escapes, further fields that may be nested, braces and commas in ids."""
    found = together(records, T0 + 50)
    assert found is not None
    assert found == one_by_one(records, T0 + 50)


@given(st.lists(plain | odd, min_size=1, max_size=6), st.integers(T0 - 5, T0 + 60))
def test_what_is_read_together_is_what_each_is_alone(
    records: list[tuple[bytes | None, bytes | None]], latest_ms: int
) -> None:
    """Where anything is odd, or in the future, each is looked at by itself."""
    found = together(records, latest_ms)
    assert found is None or found == one_by_one(records, latest_ms)


@settings(max_examples=300)
@given(st.lists(plain, min_size=1, max_size=4), st.data())
def test_a_text_that_is_cut_anywhere_is_not_mended(
    records: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """No value completes another, and none passes for two."""
    text = b",".join(value for _, value in records)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=3)))
    values: list[bytes | None] = [
        text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]
    cut = [(records[min(n, len(records) - 1)][0], value) for n, value in enumerate(values)]
    found = together(list(cut), T0 + 50)
    assert found is None or found == one_by_one(list(cut), T0 + 50)


A = b'{"user_id":"u","item_id":"a","timestamp":1700000000000}'


@pytest.mark.parametrize(
    "values",
    [
        [A + b',"x":' + A[:-1], A + b"}"],  # two members, of which the second holds our next name
        [A + b"," + A, b""],
        [A + b',"x":' + A, b" "],
        [A[:-1], b'"page":1}'],
        [A[:-1] + b',"page":', A + b"}"],
    ],
)
def test_values_that_make_up_for_each_other_are_looked_at_alone(values: list[bytes]) -> None:
    """As many clicks come out of the text of all of them as there are records."""
    assert parse_plain([b"u"] * 2, values, [T0] * 2) is None


def test_each_has_its_own_latest_time() -> None:
    """A record's own timestamp bounds its click's."""
    assert parse_plain([b"u"] * 2, [A, A], [T0, T0]) is not None
    assert parse_plain([b"u"] * 2, [A, A], [T0, T0 - 1]) is None


def test_as_many_as_may_be_are_read() -> None:
    """And more of them never reach the end of the names."""
    found = parse_plain([b"u"] * TOGETHER, [A] * TOGETHER, [T0] * TOGETHER)
    assert found is not None
    assert len(found.user_ids) == TOGETHER
    assert parse_plain([], [], []) is None
    with pytest.raises(ValueError, match="at most"):
        parse_plain([b"u"] * (TOGETHER + 1), [A] * (TOGETHER + 1), [T0] * (TOGETHER + 1))


def test_a_key_that_is_not_its_clicks_user_is_looked_at_alone() -> None:
    """Also where all keys together are the bytes of all users."""
    other = A.replace(b'"user_id":"u"', b'"user_id":"v"')
    assert parse_plain([b"u", b"v"], [A, other], [T0] * 2) is not None
    assert parse_plain([b"v", b"u"], [A, other], [T0] * 2) is None
    assert parse_plain([b"u\0v", b""], [A, other], [T0] * 2) is None
