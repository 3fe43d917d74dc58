"""Whose rows are written once more after a takeover, and when."""

from consumers.settling import Settling


def test_users_of_the_first_records_and_of_recent_windows_are_due_after_a_while() -> None:
    """Before that a predecessor's write may still land; afterwards once is enough."""
    settling = Settling(after_s=30, records=100)
    settling.take({0: {"recent"}, 1: set()}, now=0.0)
    settling.add({0: ["b", "a"]}, {0: 10})
    assert settling.due(29.9, most=10) is None
    assert settling.due(30.0, most=10) == (0, ["a", "b", "recent"])
    assert settling.due(31.0, most=10) == (0, ["a", "b", "recent"]), "not yet written"
    assert settling.done(0, ["a", "b", "recent"])
    assert settling.due(32.0, most=10) is None


def test_many_users_come_some_at_a_time() -> None:
    """Each once, and the partition is settled with the last."""
    users = {f"u{n}" for n in range(25)}
    settling = Settling(after_s=30, records=100)
    settling.take({0: set(users)}, now=0.0)
    seen: list[str] = []
    while due := settling.due(30.0, most=10):
        partition, some = due
        seen += some
        assert settling.done(partition, some) == (len(seen) == 25)
    assert sorted(seen) == sorted(users)


def test_only_as_many_records_count_as_a_batch_can_have() -> None:
    """A predecessor held no more than one batch beyond what it had committed."""
    settling = Settling(after_s=30, records=100)
    settling.take({0: set(), 1: set()}, now=0.0)
    settling.add({0: ["first"], 1: ["other"]}, {0: 99, 1: 1})
    settling.add({0: ["second"]}, {0: 1})
    settling.add({0: ["too late"], 1: ["still"]}, {0: 1, 1: 1})
    assert settling.due(30.0, most=10) == (0, ["first", "second"])
    settling.drop(0)
    assert settling.due(30.0, most=10) == (1, ["other", "still"])


def test_a_partition_taken_again_begins_anew() -> None:
    """Its last owner's last write counts, whoever that was."""
    settling = Settling(after_s=30, records=100)
    settling.take({0: {"old"}}, now=0.0)
    settling.drop(0)
    settling.take({0: {"new"}}, now=20.0)
    assert settling.due(30.0, most=10) is None
    assert settling.due(50.0, most=10) == (0, ["new"])
