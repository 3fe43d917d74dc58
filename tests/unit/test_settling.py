"""Whose rows are written once more after a takeover, and when."""

import pytest

from consumers.settling import Settling


def settling(*, recent: dict[int, set[str]]) -> Settling:
    """Partitions taken over at 0, to be settled from 30 to 50 s on."""
    one = Settling(after_s=30, within_s=20, records=100)
    one.take(recent, now=0.0)
    return one


def test_users_of_the_first_records_and_of_recent_windows_are_due_after_a_while() -> None:
    """Before that a predecessor's write may still land; afterwards once is enough."""
    one = settling(recent={0: {"recent"}, 1: set()})
    one.add({0: ["b", "a"]}, {0: 10}, now=1.0)
    assert one.next(29.9, most=10) is None
    due = one.next(31.0, most=10)
    assert due == {0: ["a", "b", "recent"]}
    assert one.next(32.0, most=10) is None, "they are on their way"
    assert one.done(due) == [0]
    assert one.next(33.0, most=10) is None


def test_what_was_abandoned_is_due_again() -> None:
    """Whether or not it was written."""
    one = settling(recent={0: {"recent"}})
    due = one.next(31.0, most=10)
    one.again([])
    assert one.next(32.0, most=10) == due == {0: ["recent"]}


def test_many_users_come_some_at_a_time_and_in_time() -> None:
    """Each once, however long the work between takes, and the last of them settles theirs."""
    for turn_s in (0.01, 0.7, 3.0):
        users = {0: {f"u{n}" for n in range(4000)}, 1: {f"v{n}" for n in range(4000)}}
        one = settling(recent={p: set(of_partition) for p, of_partition in users.items()})
        seen: dict[int, list[str]] = {0: [], 1: []}
        settled: list[int] = []
        sizes: list[int] = []
        now = 29.0
        while len(settled) < 2:
            if due := one.next(now, most=10_000):
                ((partition, some),) = due.items()
                seen[partition] += some
                sizes.append(len(some))
                settled += one.done(due)
            now += turn_s
        assert {p: sorted(found) for p, found in seen.items()} == {
            p: sorted(of_partition) for p, of_partition in users.items()
        }
        assert max(sizes) <= 64 + turn_s * 1000, "400 a second are enough, if none is late"
        assert 40 < now < 50 + 2 * turn_s


def test_few_users_do_not_wait() -> None:
    """A burst of some is no burden; the next of them comes a little later."""
    one = settling(recent={0: {f"u{n}" for n in range(100)}})
    assert one.wait_s(10.0) == 20.0
    first = one.next(30.0, most=1000)
    assert first is not None
    assert len(first[0]) == 64
    assert one.wait_s(30.01) is None, "nothing more while these are on their way"
    one.done(first)
    assert one.wait_s(30.01) == pytest.approx(36 / 256 - 0.01)
    assert one.next(30.1, most=1000) is None
    second = one.next(30.2, most=1000)
    assert second is not None
    assert one.done(second) == [0]
    assert one.wait_s(30.2) is None


def test_too_late_is_as_soon_as_possible() -> None:
    """Though not more at once than may be."""
    one = settling(recent={0: {f"u{n}" for n in range(1000)}})
    first = one.next(90.0, most=600)
    assert first is not None
    assert len(first[0]) == 600
    one.done(first)
    second = one.next(90.2, most=600)
    assert second is not None
    assert one.done(second) == [0]


def test_a_batch_settles_its_users_once_they_are_due() -> None:
    """Its rows come after whatever the predecessor wrote."""
    one = settling(recent={0: {"a", "b"}, 1: {"c"}})
    assert one.among({0: ["a"]}, 29.9) == {}
    assert one.among({0: ["a", "x"], 2: ["a"]}, 30.0) == {0: {"a"}}
    assert one.done({0: {"a"}}) == []
    assert one.next(31.0, most=10) == {0: ["b"]}
    assert one.done({0: {"b"}}) == [0], "by a batch, though they were on their way beside it"
    one.again([])
    assert one.next(32.0, most=10) == {1: ["c"]}


def test_who_is_written_once_that_is_due_need_not_be_written_again() -> None:
    """A batch that began before must be; one that began after needs nothing."""
    one = settling(recent={0: {"a"}})
    one.add({0: ["before"]}, {0: 1}, now=29.9)
    one.add({0: ["after"]}, {0: 1}, now=30.0)
    assert one.next(31.0, most=10) == {0: ["a", "before"]}


def test_only_as_many_records_count_as_a_worker_writes_ahead() -> None:
    """A predecessor held no more than these beyond what it had committed."""
    one = settling(recent={0: set(), 1: set()})
    one.add({0: ["first"], 1: ["other"]}, {0: 99, 1: 1}, now=1.0)
    one.add({0: ["second"]}, {0: 1}, now=1.0)
    one.add({0: ["too late"], 1: ["still"]}, {0: 1, 1: 1}, now=1.0)
    assert one.next(31.0, most=10) == {0: ["first", "second"]}
    one.drop(0)
    one.again([])
    assert one.next(32.0, most=10) == {1: ["other", "still"]}


def test_records_that_are_applied_again_do_not_count_twice() -> None:
    """Otherwise the last of those that the predecessor held would be left out."""
    one = settling(recent={0: set()})
    one.add({0: ["first"]}, {0: 60}, now=1.0)
    one.again([0])
    one.add({0: ["first"]}, {0: 60}, now=2.0)
    one.add({0: ["second"]}, {0: 40}, now=2.0)
    assert one.next(31.0, most=10) == {0: ["first", "second"]}


def test_a_partition_taken_again_begins_anew() -> None:
    """Its last owner's last write counts, whoever that was."""
    one = settling(recent={0: {"old"}})
    one.drop(0)
    assert one.wait_s(1.0) is None
    one.take({0: {"new"}}, now=20.0)
    assert one.next(31.0, most=10) is None
    assert one.next(51.0, most=10) == {0: ["new"]}
