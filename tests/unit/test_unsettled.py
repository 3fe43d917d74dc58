"""For which records the rows in the store are anybody's guess."""

from consumers.unsettled import Unsettled
from encoder.records import Record

_NUMBERS = iter(range(10**9))


def unsettled_by(unsettled: Unsettled, partition: int, first: int, count: int) -> bool:
    """Whether records, of a user who has none before, are unsettled."""
    user_id = f"user-{next(_NUMBERS)}"
    records = [Record(partition, first + n, 0, b"u", None) for n in range(count)]
    found = unsettled.apply(records, {partition: [user_id]})
    assert found <= {(partition, user_id)}
    return bool(found)


def test_records_before_the_end_at_a_takeover_are_unsettled() -> None:
    """Of that partition alone, and not of one that went away."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 15, 1: 15})
    records = [Record(p, 10 + n, 0, b"u", None) for p in (0, 2) for n in range(3)]
    assert unsettled.apply(records, {0: ["a", "b"], 2: ["c"]}) == {(0, "a"), (0, "b")}
    assert unsettled_by(unsettled, 0, 13, 3), "its first two"
    assert not unsettled_by(unsettled, 0, 16, 3)
    unsettled.drop(1)
    assert not unsettled_by(unsettled, 1, 10, 3)


def test_who_has_been_written_is_settled() -> None:
    """On that partition, and until a batch is abandoned or the partition is taken anew."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 50, 1: 50})
    one = [Record(0, 10, 0, b"u", None)]
    assert unsettled.apply(one, {0: ["a"]}) == {(0, "a")}
    assert unsettled.apply(one, {0: ["a", "b"]}) == {(0, "b")}
    assert unsettled.apply([Record(1, 10, 0, b"u", None)], {1: ["a"]}) == {(1, "a")}
    unsettled.abandon({0: 11})
    assert unsettled.apply(one, {0: ["a"]}) == {(0, "a")}
    unsettled.take({0: 50})
    assert unsettled.apply(one, {0: ["a"]}) == {(0, "a")}


def test_a_long_backlog_is_unsettled_only_as_far_as_a_worker_writes_ahead() -> None:
    """The batch that crosses the line still is."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 10_000})
    assert unsettled_by(unsettled, 0, 0, 60)
    assert unsettled_by(unsettled, 0, 60, 60)
    assert not unsettled_by(unsettled, 0, 120, 60)


def test_what_was_abandoned_is_unsettled_again() -> None:
    """As far as it reached; together with what was unsettled before."""
    unsettled = Unsettled(records=100)
    unsettled.take({0: 30})
    unsettled.abandon({0: 20, 1: 5})
    assert unsettled_by(unsettled, 0, 10, 10)
    assert unsettled_by(unsettled, 0, 20, 10)
    assert not unsettled_by(unsettled, 0, 30, 10)
    assert unsettled_by(unsettled, 1, 0, 5)
    assert not unsettled_by(unsettled, 1, 5, 5)
    unsettled.abandon({0: 40})
    assert unsettled_by(unsettled, 0, 30, 10)
    assert not unsettled_by(unsettled, 0, 40, 10)
