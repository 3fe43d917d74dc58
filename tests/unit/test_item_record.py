"""What a record on the items topic says of an item, and what it cannot say."""

import json

import pytest

from encoder.errors import Misconfigured
from encoder.item_record import ItemRecord, RejectedItem, parse_fields, parse_item_id
from mindstream.item_lines import read_item_lines


def test_fields_are_texts_numbers_and_lists_of_texts() -> None:
    """Anything else counts as not known, so that producers may add what they like."""
    said = {
        "item_id": "cup",
        "title": "red cup",
        "price": 12,
        "brand": ["acme", "best"],
        "none": None,
        "deep": {"a": 1},
        "mixed": ["a", 1],
        "flag": True,
        "huge": 10**400,
    }
    found = parse_fields("cup", json.dumps(said))
    assert {name: value for name, value in found.items() if value is not None} == {
        "title": "red cup",
        "price": 12.0,
        "brand": ["acme", "best"],
    }
    assert parse_fields("cup", '{"price": NaN}') == {"price": None}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "not_json"),
        (b"\xff", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[1]", "not_an_object"),
        (b'{"item_id": "bowl"}', "key_mismatch"),
        (b'{"item_id": null}', "key_mismatch"),
    ],
)
def test_what_is_no_item_is_refused(value: bytes, reason: str) -> None:
    """And such a record says that nothing is known of the item, whoever reads it and when."""
    with pytest.raises(RejectedItem) as raised:
        parse_fields("cup", value)
    assert raised.value.reason == reason
    record = ItemRecord("cup", 0, 7, value)
    assert record.fields() == {}
    assert not record.withdrawn
    assert ItemRecord("cup", 0, 8, None).withdrawn


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "no_key"),
        (b"\xff", "key_not_utf8"),
        (b"", "invalid_key"),
        (b"a\x00", "invalid_key"),
        (b"x" * 257, "invalid_key"),
    ],
)
def test_a_key_is_an_item_id(key: bytes | None, reason: str) -> None:
    """As clicks have them."""
    with pytest.raises(RejectedItem) as raised:
        parse_item_id(key)
    assert raised.value.reason == reason


def test_lines_that_are_no_items_are_named() -> None:
    """With their numbers; empty lines are passed over."""
    good = ['{"item_id": "cup", "title": "red"}', "", ' {"item_id": "bowl"} ']
    assert read_item_lines(good, "file") == [
        ("cup", b'{"item_id": "cup", "title": "red"}'),
        ("bowl", b'{"item_id": "bowl"}'),
    ]
    with pytest.raises(Misconfigured, match=r"file has lines .* line 2: .*; line 4: .*item_id"):
        read_item_lines([good[0], "{", good[0], '{"title": "red"}'], "file")
