"""For which records the rows in the store are anybody's guess."""

from consumers.unsettled import Unsettled
from encoder.records import Record


def records(partition: int, first: int, count: int) -> list[Record]:
    return [Record(partition, first + n, 0, b"u", None) for n in range(count)]


def test_records_before_the_end_at_a_takeover_are_unsettled() -> None:
    """Of that partition alone, and not of one that went away."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 15, 1: 15})
    assert unsettled.apply([*records(0, 10, 3), *records(2, 0, 3)])
    assert unsettled.apply(records(0, 13, 3)), "its first two"
    assert not unsettled.apply(records(0, 16, 3))
    unsettled.drop(1)
    assert not unsettled.apply(records(1, 10, 3))


def test_a_long_backlog_is_unsettled_only_as_far_as_a_worker_writes_ahead() -> None:
    """The batch that crosses the line still is."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 10_000})
    assert unsettled.apply(records(0, 0, 60))
    assert unsettled.apply(records(0, 60, 60))
    assert not unsettled.apply(records(0, 120, 60))


def test_what_was_abandoned_is_unsettled_again() -> None:
    """As far as it reached; together with what was unsettled before."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 30})
    unsettled.abandon({0: 20, 1: 5})
    assert unsettled.apply(records(0, 10, 10))
    assert unsettled.apply(records(0, 20, 10))
    assert not unsettled.apply(records(0, 30, 10))
    assert unsettled.apply(records(1, 0, 5))
    assert not unsettled.apply(records(1, 5, 5))
    unsettled.abandon({0: 40})
    assert unsettled.apply(records(0, 30, 10))
    assert not unsettled.apply(records(0, 40, 10))
