"""The click contract: what is accepted, and why the rest is not."""

import json

import pytest

from encoder.click import Click, RejectedClick, parse_click, parse_user

NOW_MS = 1_764_000_000_000
GOOD = {"user_id": "u1", "item_id": "i1", "timestamp": 1_700_000_000_000}


def value(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def reason(key: bytes | None, body: bytes) -> str:
    with pytest.raises(RejectedClick) as caught:
        parse_click(key, body, latest_ms=NOW_MS)
    return f"{caught.value.reason}: {caught.value.detail}"


def test_milliseconds_and_rfc_3339_mean_the_same_instant() -> None:
    """An event time may be written either way."""
    written = parse_click(b"u1", value(timestamp="2023-11-14T23:13:20.007+01:00"), latest_ms=NOW_MS)
    assert written == Click("u1", "i1", 1_700_000_000_007)
    assert parse_click(b"u1", value(), latest_ms=NOW_MS).timestamp_ms == 1_700_000_000_000


def test_unknown_fields_are_ignored_and_event_id_is_kept() -> None:
    """Producers may send more than we read."""
    click = parse_click(b"u1", value(event_id="e", page="home"), latest_ms=NOW_MS)
    assert click == Click("u1", "i1", 1_700_000_000_000, "e")


def test_a_click_survives_its_own_record() -> None:
    """to_record writes what parse_click reads."""
    click = Click("ü", 'PINK "LIGHTS"', 1_700_000_000_123, "e1")
    assert parse_click(*click.to_record(), latest_ms=NOW_MS) == click


@pytest.mark.parametrize(
    ("timestamp", "says"),
    [
        (1_700_000_000, "in seconds"),
        (1_700_000_000_000_000, "in microseconds"),
        ("1700000000000", "RFC 3339"),
        ("2023-11-14", "timestamp"),
        ("2023-11-14T22:13:20", "timezone"),
        ("1700-11-14T22:13:20Z", "too small"),
        (1.7e12, "integer"),
        (True, "integer"),
        (None, "integer"),
        (float("nan"), "integer"),
        (10**30, "too large"),
    ],
)
def test_a_timestamp_that_cannot_be_meant_is_rejected(timestamp: object, says: str) -> None:
    """The reason names the field and what is wrong with it."""
    told = reason(b"u1", value(timestamp=timestamp))
    assert told.startswith("invalid_field: timestamp")
    assert says in told


def test_a_click_from_the_future_is_rejected() -> None:
    """The bound itself is still accepted."""
    assert parse_click(b"u1", value(timestamp=NOW_MS), latest_ms=NOW_MS).timestamp_ms == NOW_MS
    assert reason(b"u1", value(timestamp=NOW_MS + 1)).startswith("future_timestamp")


@pytest.mark.parametrize(
    ("key", "body", "says"),
    [
        (None, value(), "no_key"),
        (b"", value(), "invalid_field: the record's key is empty"),
        (b"\xff", value(), "key_not_utf8"),
        (b"u2", value(), "key_mismatch"),
        (b"u1", b"", "not_json"),
        (b"u1", b"{", "not_json"),
        (b"u1", b'{"user_id":"\xff"}', "not_json"),
        (b"u1", b'{"user_id":"\\ud800"}', "not_json"),
        (b"u1", b"[]", "invalid_field: value"),
        (b"u1", b'"u1"', "invalid_field: value"),
        (b"u1", b"{}", "user_id Field required; item_id Field required; timestamp Field required"),
        (b"u1", value(item_id=7), "item_id"),
        (b"u1", value(item_id=""), "item_id is empty"),
        (b"u1", value(item_id="i" * 257), "item_id is longer than 256 bytes"),
        (b"u1", value(item_id="é" * 129), "item_id is longer than 256 bytes"),
        (b"u1", value(item_id="a\0b"), "item_id contains a control character"),
        (b"u1", value(item_id="a\nb"), "item_id contains a control character"),
        (b"u\x7f", value(), "the record's key contains a control character"),
        (b"u" * 257, value(user_id="u" * 257), "invalid_field"),
    ],
)
def test_a_record_that_breaks_the_contract_is_rejected(
    key: bytes | None, body: bytes, says: str
) -> None:
    """Each breach has a reason that names the field."""
    assert says in reason(key, body)


def test_the_longest_ids_fit() -> None:
    """256 bytes of UTF-8 are accepted, whatever the number of characters."""
    longest = "é" * 128
    click = parse_click(longest.encode(), value(user_id=longest, item_id=longest), latest_ms=NOW_MS)
    assert click.item_id == longest


def test_a_key_alone_names_a_user() -> None:
    """A tombstone has only its key."""
    assert parse_user("ü".encode()) == "ü"
