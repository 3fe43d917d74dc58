"""Calls that are made at once."""

import threading

import pytest

from consumers.at_once import at_once

DEADLINE_S = 10.0


def test_calls_run_at_the_same_time() -> None:
    """Each of three waits for the two others."""
    met = threading.Barrier(3)

    def meet() -> None:
        met.wait(DEADLINE_S)

    at_once([meet] * 3)
    assert not met.broken


def test_a_failure_is_raised_once_all_have_ended() -> None:
    """The first of those that failed; what is still under way is waited for."""
    failed, ended = threading.Event(), threading.Event()

    def fail(error: Exception) -> None:
        failed.set()
        raise error

    def last() -> None:
        assert failed.wait(DEADLINE_S)
        threading.Event().wait(0.2)  # in which nobody may have gone on
        ended.set()

    with pytest.raises(OSError, match="one"):
        at_once([lambda: fail(OSError("one")), last, lambda: fail(ValueError("two"))])
    assert ended.is_set()


def test_nothing_to_call_is_no_failure() -> None:
    """A batch may have nothing to write."""
    at_once([])
