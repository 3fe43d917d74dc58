"""For how long a worker may write, counted from what the group has confirmed."""

import math

from consumers.lease import Lease

SESSION_S = 30.0


def test_nobody_may_write_before_the_first_confirmation() -> None:
    """A worker that has not joined has nothing to write."""
    assert Lease(SESSION_S).left_s(now=0.0) == -math.inf
    assert Lease(SESSION_S).unconfirmed_s(now=0.0) == math.inf


def test_the_lease_is_over_well_before_the_session() -> None:
    """The group counts from when it heard us, which is after we asked."""
    lease = Lease(SESSION_S)
    lease.confirm(100.0)
    assert lease.left_s(100.0) == 20.0
    assert lease.left_s(120.0) == 0.0
    assert lease.left_s(125.0) < 0.0
    assert lease.unconfirmed_s(125.0) == 25.0


def test_an_old_confirmation_takes_nothing_away() -> None:
    """Answers may be looked at in any order."""
    lease = Lease(SESSION_S)
    lease.confirm(100.0)
    lease.confirm(90.0)
    assert lease.left_s(100.0) == 20.0
