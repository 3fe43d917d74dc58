"""The share of rejected records: when it stops a worker, and what it says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import Rejected
from consumers.rejected_share import RECENT_RECORDS, RejectedShare
from encoder.errors import Misconfigured
from encoder.records import Record

T0 = 1_700_000_000_000


def batches_of(outcomes: list[bool], cuts: list[int]) -> list[tuple[list[Record], list[Rejected]]]:
    """Records, True where rejected, cut into batches."""
    records = [Record(1, 100 + n, T0, b"u", b"") for n in range(len(outcomes))]
    edges = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    return [
        (
            records[start:end],
            [Rejected(records[n], "not_json", "") for n in range(start, end) if outcomes[n]],
        )
        for start, end in itertools.pairwise(edges)
    ]


def stopped_at(limit: float, outcomes: list[bool], cuts: list[int]) -> int | None:
    """The number of the batch that is refused."""
    share = RejectedShare("clicks", limit)
    for number, (records, rejected) in enumerate(batches_of(outcomes, cuts)):
        try:
            share = share.after(records, rejected)
        except Misconfigured:
            return number
        assert len(share.recent) <= RECENT_RECORDS
    return None


def expected(limit: float, outcomes: list[bool]) -> int | None:
    """The number of the record after which the share is too large, by its definition."""
    for end in range(RECENT_RECORDS, len(outcomes) + 1):
        if sum(outcomes[end - RECENT_RECORDS : end]) / RECENT_RECORDS > limit:
            return end - 1
    return None


runs = st.lists(st.tuples(st.booleans(), st.integers(1, 700)), min_size=1, max_size=6).map(
    lambda runs: [rejected for rejected, length in runs for _ in range(length)]
)


@given(
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.999, 1.0]),
    runs,
    st.lists(st.integers(1, 4000), max_size=8),
)
def test_it_is_the_share_of_any_thousand_records_in_a_row(
    limit: float, outcomes: list[bool], cuts: list[int]
) -> None:
    """However the records fall into batches; the batch with the record too many is refused."""
    record = expected(limit, outcomes)
    stopped = stopped_at(limit, outcomes, cuts)
    if record is None:
        assert stopped is None
    else:
        assert stopped is not None
        records, _ = batches_of(outcomes, cuts)[stopped]
        assert records[0].offset <= 100 + record <= records[-1].offset


def test_fewer_than_a_thousand_records_never_stop_a_worker() -> None:
    """A new topic may begin with a few bad ones."""
    assert stopped_at(0.25, [True] * (RECENT_RECORDS - 1), []) is None
    assert stopped_at(0.25, [True] * RECENT_RECORDS, []) == 0


def test_a_limit_of_one_allows_all() -> None:
    """It switches the limit off."""
    assert stopped_at(1, [True] * 5000, [1000, 2000]) is None


def test_a_batch_that_is_repeated_counts_once() -> None:
    """The share is kept only with the commit: an abandoned batch leaves no trace."""
    records = [Record(0, n, T0, b"u", b"") for n in range(1000)]
    bad = [Rejected(record, "not_json", "") for record in records[:250]]
    share = RejectedShare("clicks", 0.25)
    share.after(records[:500], bad)  # abandoned
    share = share.after(records[:500], bad)
    share = share.after(records[500:], [])
    assert (share.seen, len(share.recent)) == (1000, 250)


def test_the_message_tells_what_to_do() -> None:
    """Share, reasons by number, a place to look at, the setting."""
    records = [Record(3, n, T0, b"u", b"") for n in range(1000)]
    bad = [Rejected(record, "not_json", "") for record in records[:300]]
    bad += [Rejected(record, "key_mismatch", "") for record in records[300:400]]
    with pytest.raises(Misconfigured) as caught:
        RejectedShare("clicks", 0.25).after(records, bad)
    for part in (
        "40.0% of the newest 1000 records of clicks",
        "(not_json: 300, key_mismatch: 100)",
        "clicks[3] at offset 399",
        "MINDSTREAM_WORKER__MAX_REJECTED_SHARE (0.25;",
        "mindstream dead-letters",
    ):
        assert part in str(caught.value)
