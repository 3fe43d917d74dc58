"""What must still be on the windows topic, as the group notes it with its offsets."""

from types import SimpleNamespace

import pytest

from encoder.errors import Misconfigured
from encoder.window import Window, to_wire
from encoder.windows_topic import (
    REBUILDING,
    CorruptWindowRecord,
    Extent,
    check_extent,
    parse_window_record,
)

NOTED = Extent("id-1", 5, 80)


@pytest.mark.parametrize(
    "found", [NOTED, Extent("id-1", 5, 81), Extent("id-1", 0, 80)], ids=["same", "grown", "older"]
)
def test_a_topic_that_holds_what_was_noted_is_taken(found: Extent) -> None:
    """More than was noted does no harm."""
    check_extent("w", 3, NOTED.to_metadata(), found)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (Extent("id-2", 5, 80), r"w was deleted and created again: .*id-1.*offset 80.*id-2"),
        (Extent("id-1", 6, 80), r"w\[3\] was truncated: it began at offset 5, and begins at 6\."),
        (Extent("id-1", 5, 79), r"w\[3\] lost its end: it reached offset 80, and ends at 79\."),
    ],
)
def test_a_topic_that_lost_records_is_refused(found: Extent, why: str) -> None:
    """One record less is enough, and the message says what to do."""
    with pytest.raises(Misconfigured, match=rf"{why}.*run `mindstream rebuild`"):
        check_extent("w", 3, NOTED.to_metadata(), found)


def test_nothing_noted_is_nothing_to_compare() -> None:
    """Offsets of an older version, or that a person set, have no metadata."""
    check_extent("w", 3, "", Extent("id-9", 0, 0))


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (REBUILDING, r"a rebuild of w\[3\] has not ended"),
        ('{"version":2,"topic":"id-1","start":5,"end":80}', "run the version that wrote it"),
        ("by hand", r"partition 3 has metadata that this version does not read, 'by hand'"),
    ],
)
def test_a_note_that_says_no_extent_is_refused(metadata: str, why: str) -> None:
    """A rebuild under way, a version to come, anything else."""
    with pytest.raises(Misconfigured, match=rf"{why}.*mindstream rebuild"):
        check_extent("w", 3, metadata, NOTED)


def test_records_are_windows_removals_or_corrupt() -> None:
    """A record without a readable key or value is never taken for a window."""
    window = Window(((1, "x"),))
    assert parse_window_record(_record(b"u", to_wire(window))) == ("u", window)
    assert parse_window_record(_record(b"u", None)) == ("u", None)
    for key, value in ((None, None), (b"\xff", None), (b"u", b""), (b"u", b"\x02")):
        with pytest.raises(CorruptWindowRecord) as raised:
            parse_window_record(_record(key, value))
        advice = raised.value.advice("w")
        assert advice.startswith("w[3] at offset 7 is no window: ")
        assert "mindstream rebuild" in advice


def _record(key: bytes | None, value: bytes | None) -> SimpleNamespace:
    return SimpleNamespace(partition=3, offset=7, key=key, value=value)
