"""For how long a worker may still write to a store that cannot tell whether it is the owner."""

from __future__ import annotations

import math


class Lease:
    """The right to write, counted from when the group last confirmed the membership.

    The group gives a member's partitions away when it has heard nothing for a session. The lease is
    shorter than the session, so that it is over before that, also where a confirmation was long on
    its way.
    """

    def __init__(self, session_s: float) -> None:
        """Without a confirmation yet, and so without a right to write.

        Args:
            session_s: the group's session time-out.
        """
        self._length_s = session_s * 2 / 3
        self._confirmed_at = -math.inf

    def confirm(self, at: float) -> None:
        """The membership was confirmed by an answer to something asked at this time."""
        self._confirmed_at = max(self._confirmed_at, at)

    def left_s(self, now: float) -> float:
        """Seconds left; at or below 0 the worker may not write."""
        return self._confirmed_at + self._length_s - now

    def unconfirmed_s(self, now: float) -> float:
        """Seconds since the last confirmation."""
        return now - self._confirmed_at
