"""How many records to take at once: as many as their slowest step does in a given time.

A large batch has more clicks of one user, who is written once, and fewer round trips; but the last
of its clicks waits for the first. What is best depends on the store, so it is followed. Clicks that
are late anyway, because there is a backlog, may wait for a tenth of that more: it is over sooner.
"""

from __future__ import annotations

from typing import Final

_FIRST: Final = 1024
_LEAST: Final = 256
_SHARE_OF_LATENESS: Final = 0.1
_LONGEST_S: Final = 10.0
_FASTEST_GROWTH: Final = 8


class BatchSize:
    """Follows how long full batches take."""

    def __init__(self, most: int, target_s: float) -> None:
        """Start small.

        Args:
            most: records, never exceeded.
            target_s: how long the slowest step of a full batch may take while clicks are fresh.
        """
        self._most = most
        self._target_s = target_s
        self.records = min(_FIRST, most)

    def after(self, records: int, slowest_s: float, late_s: float = 0.0) -> None:
        """Take a batch into account that was committed.

        Args:
            records: how many it had.
            slowest_s: how long the slowest of its steps took.
            late_s: how old its newest record was when its rows were written.
        """
        target_s = max(self._target_s, min(late_s * _SHARE_OF_LATENESS, _LONGEST_S))
        if slowest_s > target_s:
            self.records = max(min(_LEAST, self._most), min(self.records, records) // 2)
        elif records >= self.records and slowest_s < target_s / 2:
            # At most as many as take the target's time, if time grows with them.
            growth = min(_FASTEST_GROWTH, int(target_s / max(slowest_s, 1e-9)))
            self.records = min(self._most, self.records * growth)
