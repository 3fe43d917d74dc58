"""Which users to encode next for a release that joins the one in use, and when.

A worker encodes all windows that it owns for the new release while it serves the old one. That work
takes a bounded share of its time, so that clicks go on being served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Chunk:
    """Users of one partition to be encoded for one release."""

    release: str
    partition: int
    user_ids: list[str]


@dataclass(slots=True)
class _Task:
    release: str
    partition: int
    not_before: float
    left: deque[str] | None = field(default=None)  # None before it has begun


class Backfill:
    """What is left to be done of it, one partition of one release after the other."""

    def __init__(self, users: Callable[[int], Iterable[str]], *, share: float, chunk: int) -> None:
        """Nothing to do yet.

        Args:
            users: the users of a partition, of which there may be more at every call.
            share: of the time that may go into it.
            chunk: the most users at once.
        """
        self._users = users
        self._share = share
        self._chunk = chunk
        self._tasks: deque[_Task] = deque()
        self._due_at = 0.0
        self._under_way = False

    def __bool__(self) -> bool:
        return bool(self._tasks)

    @property
    def partitions_left(self) -> int:
        """Partitions that are not filled, summed over releases."""
        return len(self._tasks)

    def add(self, release: str, partitions: Iterable[int], *, not_before: float = 0.0) -> None:
        """Fill these partitions for a release, from their first user.

        Args:
            release: its name.
            partitions: numbers.
            not_before: while a predecessor's last chunk may still land, ours could be overwritten;
                on the clock of `next`.
        """
        again = sorted(partitions)
        self._remove(lambda task: task.release == release and task.partition in again)
        self._tasks.extend(_Task(release, partition, not_before) for partition in again)

    def drop_partition(self, partition: int) -> None:
        """The partition was lost; its next owner fills it."""
        self._remove(lambda task: task.partition == partition)

    def drop_release(self, release: str) -> None:
        """The release is no longer served."""
        self._remove(lambda task: task.release == release)

    def begin_again(self) -> None:
        """What was written of the partition at hand may be gone; nothing is on its way any more."""
        self._under_way = False
        if self._tasks:
            self._tasks[0].left = None

    def wait_s(self, now: float) -> float | None:
        """Seconds until the next chunk is due; None where none will be of itself."""
        if not self._tasks or self._under_way:
            return None
        return max(0.0, max(self._due_at, min(task.not_before for task in self._tasks)) - now)

    def next(self, now: float) -> Chunk | None:
        """The users to encode now, if any are due; none of them in the chunk ends a partition.

        Args:
            now: in seconds, of a clock that does not go back.
        """
        if now < self._due_at or self._under_way:
            return None
        task = next((task for task in self._tasks if task.not_before <= now), None)
        if task is None:
            return None
        if task is not self._tasks[0]:
            self._tasks.remove(task)
            self._tasks.appendleft(task)
        if task.left is None:
            # As they are now: whoever comes later is written to all served releases anyway.
            task.left = deque(self._users(task.partition))
        some = [task.left.popleft() for _ in range(min(self._chunk, len(task.left)))]
        return Chunk(task.release, task.partition, some)

    def sent(self) -> None:
        """A chunk is on its way to the store; there is none before `spent` tells that it is there.

        Or the report of a partition is on its way, and there is none before `done`.

        The store's time counts, too: it is the same store that clicks wait for.
        """
        self._under_way = True

    def spent(self, seconds: float, now: float) -> None:
        """A chunk took so long; rest for so long that its share of the time is kept."""
        self._under_way = False
        self._due_at = now + seconds * (1 / self._share - 1)

    def done(self, release: str, partition: int) -> None:
        """A partition that was at its end is reported as filled."""
        self._under_way = False
        self._remove(lambda task: (task.release, task.partition) == (release, partition))

    def _remove(self, unwanted: Callable[[_Task], bool]) -> None:
        self._tasks = deque(task for task in self._tasks if not unwanted(task))
