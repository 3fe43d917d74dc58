"""What a person may hand back as a mended dead letter, and how a slip is told."""

import json
from typing import Any

import pytest

from encoder.dead_letter_topic import DeadLetter
from encoder.errors import Misconfigured
from mindstream.dead_letter_lines import letter_line, read_mended

LETTER = DeadLetter("clicks", 3, 41, 1_700_000_000_000, "not_json", "…", "ü".encode(), b"\xff{", ())


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(letter_line(5, LETTER)) | changes)


def test_bytes_are_text_where_they_can_be() -> None:
    """UTF-8 as it is, anything else in base64."""
    line = json.loads(letter_line(5, LETTER))
    assert line["letter"] == {"partition": 0, "offset": 5}
    assert line["source"]["topic"] == "clicks"
    assert line["key"] == "ü"
    assert line["value"] == {"base64": "/3s="}


def test_what_was_changed_is_what_is_read() -> None:
    """Text, base64 and null."""
    mended = read_mended([changed(key="ü", value=None, headers=[["h", {"base64": "/w=="}]])], "f")
    assert (mended[5].key, mended[5].value) == ("ü".encode(), None)
    assert mended[5].headers == (("h", b"\xff"),)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("[]", "is no dead letter: the line"),
        ("{}", "letter: Field required"),
        (changed(kye="u"), "kye: Extra inputs"),
        (changed(value=7), "value: must be a string"),
        (changed(value={"base64": "?"}), "value: is no base64"),
        (changed(value={"base64": "", "b": 1}), "value: must be a string"),
        (changed(key="\ud800"), "Invalid JSON"),
        (changed(headers={"a": "b"}), "headers: Input should be a valid array"),
        (changed(letter={"partition": 0}), "letter.offset: Field required"),
        (changed(letter={"partition": 0, "offset": "5"}), "letter.offset"),
    ],
)
def test_a_malformed_line_is_told_with_file_and_number(line: str, says: str) -> None:
    """So that it can be found among thousands."""
    good = json.dumps(json.loads(changed()) | {"letter": {"partition": 0, "offset": 4}})
    with pytest.raises(Misconfigured, match=r"^letters\.jsonl, line 2 is no dead letter") as caught:
        read_mended([good, line], "letters.jsonl")
    assert says in str(caught.value)


def test_a_letter_may_not_be_named_twice() -> None:
    """It would not be clear which of the two is meant."""
    with pytest.raises(Misconfigured, match=r"line 3 repeats the letter at offset 5, .* line 1"):
        read_mended([changed(), "", changed(key="v")], "f")
