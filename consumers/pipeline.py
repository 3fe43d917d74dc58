"""Items on their way through steps, each step on a thread of its own.

An item takes its steps in order, and every step takes the items in order, so that while one item
is at its second step the next one can be at its first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Entry(Generic[Item]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.steps_done = 0
        self.busy = False


class Pipeline(Generic[Item]):
    """For one thread that submits.

    Where a step of an item fails, no item after it takes another step, and those before it go on.
    """

    def __init__(self, steps: Sequence[Callable[[Item], None]], name: str) -> None:
        """Start the threads.

        Args:
            steps: what is done to every item, in order.
            name: for the threads.
        """
        self._steps = steps
        self._entries: deque[_Entry[Item]] = deque()
        self._finished: list[Item] = []
        self._failed: tuple[_Entry[Item], BaseException] | None = None
        self._closed = False
        self._changed = threading.Condition()
        for number in range(len(steps)):
            threading.Thread(
                target=self._run, args=(number,), name=f"{name}-{number}", daemon=True
            ).start()

    @property
    def in_flight(self) -> int:
        """Items submitted and not finished."""
        return len(self._entries)

    @property
    def failure(self) -> BaseException | None:
        """What a step raised, once nothing moves any more; None while all is well."""
        with self._changed:
            return self._failed[1] if self._failed and not self._moves() else None

    def submit(self, item: Item) -> None:
        """Send an item on its way."""
        with self._changed:
            self._entries.append(_Entry(item))
            self._changed.notify_all()

    def wait(self, most: int) -> None:
        """Until at most so many are in flight, or nothing moves any more after a failure."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._entries) <= most or (self._failed and not self._moves())
            )

    def take_finished(self) -> list[Item]:
        """Items that finished since this was last asked, in order."""
        with self._changed:
            finished, self._finished = self._finished, []
            return finished

    def take_unfinished(self) -> list[Item]:
        """After a failure: the item that failed and those after it. The pipeline is empty then."""
        with self._changed:
            left = [entry.item for entry in self._entries]
            self._entries.clear()
            self._failed = None
            return left

    def close(self, timeout_s: float) -> None:
        """Let the threads end; an item's next step is not taken any more.

        Args:
            timeout_s: how long to wait for steps that are under way.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not any(entry.busy for entry in self._entries), timeout_s
            )

    def _run(self, number: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next(number) is not None)
                entry = self._next(number)
                if self._closed or entry is None:
                    return
                entry.busy = True
            raised: BaseException | None = None
            try:
                self._steps[number](entry.item)
            except BaseException as exc:
                raised = exc
            with self._changed:
                entry.busy = False
                if raised is None:
                    entry.steps_done += 1
                    while self._entries and self._entries[0].steps_done == len(self._steps):
                        self._finished.append(self._entries.popleft().item)
                elif self._failed is None or entry not in self._after_failed():
                    self._failed = entry, raised
                self._changed.notify_all()

    def _next(self, number: int) -> _Entry[Item] | None:
        """The first item that may take a step."""
        for entry in self._entries:
            if self._failed is not None and entry is self._failed[0]:
                return None
            if entry.steps_done == number:
                return None if entry.busy else entry
        return None

    def _moves(self) -> bool:
        """Whether anything is still under way, or will be."""
        after = self._after_failed()
        return any(entry.busy or entry not in after for entry in self._entries)

    def _after_failed(self) -> list[_Entry[Item]]:
        """The item that failed and those after it."""
        if self._failed is None:
            return []
        entries = list(self._entries)
        return entries[entries.index(self._failed[0]) :]
