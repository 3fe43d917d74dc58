"""Which users are encoded next for a release that joins, and when."""

from consumers.backfill import Backfill, Chunk

USERS = {0: ["a", "b", "c"], 1: ["d"], 2: []}


def backfill(share: float = 0.5, chunk: int = 2) -> Backfill:
    return Backfill(lambda partition: USERS[partition], share=share, chunk=chunk)


def test_partitions_are_filled_one_after_the_other_in_chunks() -> None:
    """An empty chunk says that a partition is at its end; it stays until it is reported."""
    work = backfill()
    assert not work
    assert work.wait_s(0.0) is None
    work.add("r", [1, 0])
    assert work.partitions_left == 2
    chunks = [work.next(0.0) for _ in range(4)]
    assert chunks == [
        Chunk("r", 0, ["a", "b"]),
        Chunk("r", 0, ["c"]),
        Chunk("r", 0, []),
        Chunk("r", 0, []),
    ]
    work.sent()
    assert work.next(0.0) is None
    work.done("r", 0)
    assert work.next(0.0) == Chunk("r", 1, ["d"])
    assert work.next(0.0) == Chunk("r", 1, [])
    work.done("r", 1)
    assert work.next(0.0) is None


def test_a_partition_without_users_is_reported_all_the_same() -> None:
    """Nothing to encode is filled, too."""
    work = backfill()
    work.add("r", [2])
    assert work.next(0.0) == Chunk("r", 2, [])


def test_it_takes_no_more_than_its_share_of_the_time() -> None:
    """After a chunk of 10 ms at a fifth it rests for 40 ms."""
    work = backfill(share=0.2)
    work.add("r", [0])
    assert work.next(100.0) is not None
    work.spent(0.010, 100.010)
    assert work.next(100.049) is None
    assert abs((work.wait_s(100.020) or 0.0) - 0.030) < 1e-9
    assert work.next(100.0501) is not None


def test_the_time_of_the_store_counts() -> None:
    """While a chunk is on its way there is no other, and the rest begins when it is there."""
    work = backfill(share=0.5)
    work.add("r", [0])
    assert work.next(0.0) is not None
    work.sent()
    assert work.next(10.0) is None
    assert work.wait_s(10.0) is None
    work.spent(2.0, 10.0)
    assert work.next(11.9) is None
    assert work.next(12.0) == Chunk("r", 0, ["c"])
    work.sent()
    work.begin_again()  # it failed
    assert work.next(20.0) == Chunk("r", 0, ["a", "b"])


def test_lost_partitions_and_withdrawn_releases_are_left_out() -> None:
    """Whatever of them is under way ends with them."""
    work = backfill()
    work.add("r", [0, 1])
    work.add("s", [0, 1])
    assert work.next(0.0) == Chunk("r", 0, ["a", "b"])
    work.drop_partition(0)
    assert work.next(0.0) == Chunk("r", 1, ["d"])
    work.drop_release("r")
    assert work.next(0.0) == Chunk("s", 1, ["d"])
    assert work.partitions_left == 1


def test_a_partition_that_was_taken_over_waits_and_lets_others_go_first() -> None:
    """Until nothing that its last owner sent can arrive any more."""
    work = backfill()
    work.add("r", [0], not_before=30.0)
    assert work.next(29.9) is None
    assert work.wait_s(10.0) == 20.0
    work.add("r", [1])
    assert work.wait_s(10.0) == 0.0
    assert work.next(10.0) == Chunk("r", 1, ["d"])
    assert work.next(30.0) == Chunk("r", 1, [])
    work.done("r", 1)
    assert work.next(30.0) == Chunk("r", 0, ["a", "b"])
    assert work.partitions_left == 1


def test_what_may_be_gone_is_filled_again() -> None:
    """From the partition's first user, once a write failed or the partition came back."""
    work = backfill()
    work.add("r", [0])
    work.next(0.0)
    work.begin_again()
    assert work.next(0.0) == Chunk("r", 0, ["a", "b"])
    work.add("r", [0])
    assert work.partitions_left == 1
    assert work.next(0.0) == Chunk("r", 0, ["a", "b"])


def test_a_report_that_comes_when_the_partition_is_gone_ends_no_other() -> None:
    """It was on its way when the release was withdrawn."""
    work = backfill()
    work.add("r", [2])
    work.add("s", [2])
    assert work.next(0.0) == Chunk("r", 2, [])
    work.sent()
    work.drop_release("r")
    work.done("r", 2)
    assert work.next(0.0) == Chunk("s", 2, [])
