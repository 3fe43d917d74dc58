"""How many records to take at once: as many as their slowest step does in a given time.

A large batch has more clicks of one user, who is written once, and fewer round trips; but the last
of its clicks waits for the first. What is best depends on the store, so it is followed.
"""

from __future__ import annotations

from typing import Final

_FIRST: Final = 1024
_LEAST: Final = 256


class BatchSize:
    """Follows how long full batches take."""

    def __init__(self, most: int, target_s: float) -> None:
        """Start small.

        Args:
            most: records, never exceeded.
            target_s: how long the slowest step of a full batch may take.
        """
        self._most = most
        self._target_s = target_s
        self.records = min(_FIRST, most)

    def after(self, records: int, slowest_s: float) -> None:
        """A batch of so many records was committed, and its slowest step took so long."""
        if slowest_s > self._target_s:
            self.records = max(min(_LEAST, self._most), min(self.records, records) // 2)
        elif records >= self.records and slowest_s < self._target_s / 2:
            self.records = min(self._most, self.records * 2)
