"""Batches grow while they are fast, and shrink when they are slow."""

from consumers.batch_size import BatchSize


def test_full_batches_that_are_fast_let_it_grow_to_its_bound() -> None:
    """One that was not full says nothing of larger ones."""
    size = BatchSize(most=5000, target_s=0.5)
    size.after(10, 0.01)
    assert size.records == 1024
    size.after(1024, 0.2)
    assert size.records == 2048
    size.after(2048, 0.1)
    assert size.records == 5000


def test_it_grows_as_far_as_the_last_batch_says_it_may() -> None:
    """At most to what takes the target's time, and eightfold at once."""
    size = BatchSize(most=1_000_000, target_s=0.5)
    size.after(1024, 0.1)
    assert size.records == 5 * 1024
    size.after(5 * 1024, 0.0)
    assert size.records == 8 * 5 * 1024


def test_slow_batches_let_it_shrink() -> None:
    """By half each time, to a least; between half the target and the target it stays."""
    size = BatchSize(most=16_384, target_s=0.5)
    size.after(1024, 0.3)
    assert size.records == 1024
    for expected in (512, 256, 256):
        size.after(size.records, 2.0)
        assert size.records == expected


def test_clicks_that_are_late_may_take_longer() -> None:
    """A tenth of their lateness, up to a bound; from the future counts as fresh."""
    size = BatchSize(most=16_384, target_s=0.5)
    size.after(1024, 2.5, late_s=60.0)
    assert size.records == 2048
    size.after(2048, 4.0, late_s=60.0)
    assert size.records == 2048
    size.after(2048, 7.0, late_s=60.0)
    assert size.records == 1024
    size.after(1024, 11.0, late_s=1e9)
    assert size.records == 512
    size.after(512, 0.4, late_s=-1e9)
    assert size.records == 512


def test_a_small_bound_is_kept() -> None:
    """Whatever the times."""
    size = BatchSize(most=64, target_s=0.5)
    for slowest_s in (0.1, 3.0, 0.1):
        size.after(64, slowest_s)
        assert size.records <= 64
    assert size.records == 64
