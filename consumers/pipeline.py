"""Items on their way through two steps, each on a thread of its own.

The first step takes items one by one, the second takes together all that the first is done with by
then: where the second has a cost of its own whatever it is given, items do not queue for it, and it
may rest for more to gather. Both take them in order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Entry(Generic[Item]):
    def __init__(self, item: Item, weight: int) -> None:
        self.item = item
        self.weight = weight
        self.past_first = False
        self.busy = False


class Pipeline(Generic[Item]):
    """For one thread that submits.

    Where a step fails, no item of it and none after them takes another step, and those before them
    go on.
    """

    def __init__(
        self,
        first: Callable[[Item], None],
        second: Callable[[Sequence[Item]], None],
        *,
        joins: Callable[[Item, Item], bool] = lambda before, after: True,
        rest_s: float = 0.0,
        name: str,
    ) -> None:
        """Start the threads.

        Args:
            first: done to every item.
            second: done to neighbours at once.
            joins: whether the second step may take an item together with the one before it.
            rest_s: how long, from its last beginning, the second step lets items gather that nobody
                waits for.
            name: for the threads.
        """
        self._first, self._second, self._joins = first, second, joins
        self._entries: deque[_Entry[Item]] = deque()
        self._finished: list[Item] = []
        self._failed: tuple[_Entry[Item], BaseException] | None = None
        self._closed = False
        self._rest_s = rest_s
        self._hurried = 0  # how many wait for second steps
        self._changed = threading.Condition()
        for number, run in enumerate((self._run_first, self._run_second)):
            threading.Thread(target=run, name=f"{name}-{number}", daemon=True).start()

    @property
    def in_flight(self) -> int:
        """Items submitted and not finished."""
        return len(self._entries)

    @property
    def failure(self) -> BaseException | None:
        """What a step raised, once nothing moves any more; None while all is well."""
        with self._changed:
            return self._failed[1] if self._failed and not self._moves() else None

    def submit(self, item: Item, weight: int = 1) -> None:
        """Send an item on its way."""
        with self._changed:
            self._entries.append(_Entry(item, weight))
            self._changed.notify_all()

    def wait(self) -> None:
        """Until nothing is in flight, or nothing moves any more after a failure."""
        self._wait(lambda: not self._entries, hurry=True)

    def wait_for_room(self, weight: int, most: int) -> None:
        """Until an item would begin its first step at once; or nothing moves after a failure.

        Args:
            weight: of that item. Without it and together with it, what is in flight weighs no more
                than `most`; a heavier one has to be alone.
            most: weight.
        """

        def light() -> bool:
            return not self._entries or weight + sum(one.weight for one in self._entries) <= most

        self._wait(lambda: all(entry.past_first for entry in self._entries), hurry=False)
        self._wait(light, hurry=True)

    def take_finished(self) -> list[Item]:
        """Items that finished since this was last asked, in order."""
        with self._changed:
            finished, self._finished = self._finished, []
            return finished

    def take_unfinished(self) -> list[Item]:
        """After a failure: what failed and all after it. Nothing is in flight then."""
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

    def _wait(self, enough: Callable[[], bool], *, hurry: bool) -> None:
        with self._changed:
            if enough():
                return
            self._hurried += hurry
            self._changed.notify_all()
            self._changed.wait_for(lambda: enough() or (self._failed and not self._moves()))
            self._hurried -= hurry

    def _run_first(self) -> None:
        while entries := self._begin(self._next_for_first):
            failure = _raised(lambda: self._first(entries[0].item))
            with self._changed:
                entries[0].past_first = failure is None
                self._end(entries, failure)

    def _run_second(self) -> None:
        rested_at = 0.0
        while entries := self._begin(self._next_for_second, rested_at):
            rested_at = time.monotonic() + self._rest_s
            failure = _raised(lambda: self._second([one.item for one in entries]))
            with self._changed:
                if failure is None:
                    self._finished += [self._entries.popleft().item for _ in entries]
                self._end(entries, failure)

    def _begin(
        self, next_entries: Callable[[], list[_Entry[Item]]], rested_at: float = 0.0
    ) -> list[_Entry[Item]]:
        """The entries to take a step with; none once the pipeline is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or next_entries())
            self._changed.wait_for(
                lambda: self._closed or self._hurried, max(0.0, rested_at - time.monotonic())
            )
            entries = [] if self._closed else next_entries()
            for entry in entries:
                entry.busy = True
            return entries

    def _end(self, entries: list[_Entry[Item]], failure: BaseException | None) -> None:
        for entry in entries:
            entry.busy = False
        if failure is not None and (self._failed is None or entries[0] not in self._stopped()):
            self._failed = entries[0], failure
        self._changed.notify_all()

    def _next_for_first(self) -> list[_Entry[Item]]:
        stopped = self._stopped()
        waiting = (one for one in self._entries if not one.past_first and one not in stopped)
        entry = next(waiting, None)
        return [] if entry is None or entry.busy else [entry]

    def _next_for_second(self) -> list[_Entry[Item]]:
        stopped = self._stopped()
        ready = list(takewhile(lambda one: one.past_first and one not in stopped, self._entries))
        if not ready or ready[0].busy:
            return []
        joined = takewhile(lambda two: self._joins(two[0].item, two[1].item), pairwise(ready))
        return [ready[0], *(after for _, after in joined)]

    def _moves(self) -> bool:
        """Whether anything is still under way, or will be."""
        stopped = self._stopped()
        return any(entry.busy or entry not in stopped for entry in self._entries)

    def _stopped(self) -> list[_Entry[Item]]:
        """The items that failed and those after them."""
        if self._failed is None:
            return []
        entries = list(self._entries)
        return entries[entries.index(self._failed[0]) :]


def _raised(step: Callable[[], None]) -> BaseException | None:
    try:
        step()
    except BaseException as exc:
        return exc
    return None
