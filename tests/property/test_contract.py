"""The click contract against any bytes at all, and the form in which rejected records are kept."""

import json
from typing import Any, NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumers.batch import decide
from consumers.window_store import WindowStore
from encoder.click import (
    Click,
    Erasure,
    RejectedClick,
    _parse_any,
    parse_click,
    parse_record,
)
from encoder.dead_letter_topic import DeadLetter, Receipt, Unreadable, read_record
from encoder.records import Record
from mindstream.dead_letter_lines import letter_line, read_mended, source_of
from tests.fuzzed_clicks import fuzzed_records

T0 = 1_700_000_000_000
REASONS = {
    "no_key",
    "key_not_utf8",
    "not_json",
    "invalid_field",
    "key_mismatch",
    "future_timestamp",
}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
fields = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)
near_clicks = st.fixed_dictionaries(
    {"user_id": fields | st.just("u"), "item_id": fields | st.text(min_size=1, max_size=10)},
    optional={
        "timestamp": fields | st.integers(T0 - 10**13, T0 + 10**13) | st.datetimes().map(str),
        "event_id": fields,
        "page": fields,
    },
).map(lambda click: json.dumps(click).encode())
keys = st.none() | st.binary(max_size=300) | st.just(b"u")
values = st.none() | st.binary(max_size=300) | near_clicks
timestamps = st.integers(-(2**63), 2**63 - 1) | st.just(T0)
headers = st.lists(
    st.tuples(
        st.text(max_size=5)
        | st.sampled_from(["mindstream.topic", "mindstream.replayed", "mindstream.nulls"]),
        st.none() | st.binary(max_size=5),
    ),
    max_size=4,
).map(tuple)


class Refusal(NamedTuple):
    reason: str
    detail: str


def parsed(key: bytes | None, value: bytes | None, at: int) -> Click | Erasure | Refusal:
    try:
        return parse_record(key, value, at, max_future_ms=1000)
    except RejectedClick as exc:
        return Refusal(exc.reason, exc.detail)


@settings(max_examples=500, deadline=None)  # the machine may be busy
@given(keys, values, timestamps)
@example(b"u", b'{"user_id":"u","item_id":"i","timestamp":"0001-01-01T00:00:00+23:59"}', T0)
@example(b"u", b'{"user_id":"u","item_id":"i","timestamp":"9999-12-31T23:59:59-23:59"}', T0)
def test_any_bytes_are_a_click_an_erasure_or_rejected(
    key: bytes | None, value: bytes | None, at: int
) -> None:
    """No other exception, the same answer again, and whatever is accepted fits the store."""
    found = parsed(key, value, at)
    assert parsed(key, value, at) == found
    if isinstance(found, Click):
        assert key == found.user_id.encode()
        for text in (found.user_id, found.item_id):
            assert 1 <= len(text.encode()) <= 256
            assert "\0" not in text
        assert 100_000_000_000 <= found.timestamp_ms <= at + 1000
    elif isinstance(found, Refusal):
        assert found[0] in REASONS
    else:
        assert (key, value, at) == (found.user_id.encode(), None, found.up_to_ms)


ids = (
    st.text(max_size=5) | st.text(min_size=60, max_size=70) | st.sampled_from(["u", "é" * 64, "\n"])
)
pairs = st.lists(
    st.tuples(
        st.sampled_from(["user_id", "item_id", "timestamp", "event_id", "page"]),
        ids.map(json.dumps)
        | st.integers(T0 - 2000, T0 + 2000).map(str)
        | st.sampled_from(["1e13", "1700000000000.0", "true", "null", "99999999999", '"\\ud800"']),
    ),
    max_size=4,
)


@settings(max_examples=500, deadline=None)
@given(st.just(b"u") | ids.map(str.encode), pairs, st.booleans(), st.integers(T0 - 1500, T0))
def test_the_short_way_accepts_nothing_that_the_definition_does_not(
    key: bytes, fields_in_order: list[tuple[str, str]], whole: bool, latest_ms: int
) -> None:
    """Also for fields that are repeated; and what both accept is the same click."""
    if whole:
        fields_in_order = [
            ("user_id", json.dumps(key.decode())),
            ("item_id", '"i"'),
            ("timestamp", str(T0 - 1000)),
            *fields_in_order,
        ]
    value = "{" + ",".join(f'"{name}":{text}' for name, text in fields_in_order) + "}"

    def outcome(parse: Any) -> object:
        try:
            return parse()
        except RejectedClick as exc:
            return exc.reason, exc.detail

    short = outcome(lambda: parse_click(key, value.encode(), latest_ms=latest_ms))
    assert short == outcome(lambda: _parse_any(key, value.encode(), latest_ms))


@given(keys, values, timestamps, headers)
def test_a_rejected_record_is_kept_as_it_was(
    key: bytes | None, value: bytes | None, at: int, record_headers: Any
) -> None:
    """Key, value, headers and timestamp of the record that a batch sets aside, bit for bit."""
    record = Record(0, 7, at, key, value, record_headers)
    store = WindowStore()
    store.add_partition(0)
    decision = decide([record], store, window_length=3, max_future_ms=1000)
    assert decision.next_offsets == {0: 8}
    assert [one.record for one in decision.rejected] == [record] * len(decision.rejected)
    assert len(decision.rejected) == isinstance(parsed(key, value, at), Refusal)


letters = st.builds(
    DeadLetter,
    topic=st.just("clicks"),
    partition=st.integers(0, 99),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=timestamps,
    reason=st.sampled_from(sorted(REASONS)),
    detail=st.text(st.characters(codec="utf-8")),
    key=keys,
    value=values,
    headers=headers,
)


@given(letters)
def test_a_letter_survives_its_own_record(letter: DeadLetter) -> None:
    """Null keys, values and headers too, and headers that are named like ours."""
    record = letter.to_record()
    assert record["key"] is not None or record["value"] is not None
    assert all(isinstance(value, bytes) for _, value in record["headers"])
    assert read_record(record["key"], record["value"], tuple(record["headers"])) == letter


def test_a_receipt_is_told_from_letters_and_from_what_others_wrote() -> None:
    """Also where a rejected record carried a header like a receipt's."""
    receipt = Receipt(12).to_record()
    assert read_record(None, receipt["value"], tuple(receipt["headers"])) == Receipt(12)
    letter = DeadLetter(
        "clicks", 0, 1, T0, "no_key", "", None, None, (("mindstream.replayed", b"0"),)
    )
    record = letter.to_record()
    assert read_record(record["key"], record["value"], tuple(record["headers"])) == letter
    for others in (
        (),
        (("mindstream.replayed", b"x"),),
        (("mindstream.replayed", b"1"), ("more", b"")),
        (("mindstream.topic", b"clicks"),),
        (*letter.to_record()["headers"][:-3], ("mindstream.reason", b"\xff")),
    ):
        assert isinstance(read_record(b"k", b"v", others), Unreadable)


@given(st.integers(0, 2**63 - 1), letters)
def test_a_letter_survives_its_own_line(offset: int, letter: DeadLetter) -> None:
    """One line of ASCII, whatever the bytes; read back as what it was."""
    line = letter_line(offset, letter)
    assert line.isascii()
    assert "\n" not in line
    mended = read_mended(["", line], "letters.jsonl")[offset]
    assert mended.line == 2
    assert mended.source == source_of(letter)
    assert (mended.key, mended.value, mended.headers) == (letter.key, letter.value, letter.headers)


def test_fuzzed_records_are_the_same_for_a_seed_and_of_every_kind() -> None:
    """A failure can be repeated; every reason, clicks and tombstones come up."""
    records = fuzzed_records(3000, seed=1)
    assert records == fuzzed_records(3000, seed=1)
    assert records != fuzzed_records(3000, seed=2)
    found = [parsed(key, value, at) for key, value, _, at in records]
    assert {one[0] for one in found if isinstance(one, Refusal)} == REASONS
    kinds = [type(one) for one in found]
    assert kinds.count(Click) > 1000
    assert kinds.count(Erasure) > 50
    assert any(len(value or b"") >= 900_000 for _, value, _, _ in records)
