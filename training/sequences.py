"""Each user's clicks in order, and the training examples cut from them.

B users, L window length, T targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.click_log import ClickLog

# Windows of similar length are batched together out of this many batches' worth, so that little
# work goes into padding while batches stay random.
BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class Batch:
    """Training examples: windows and what was clicked next.

    Attributes:
        rows: int64 (B, L), windows, oldest click first, padded at the end with 0.
        targets: int64 (B, T), rows clicked after the window; 0 where there are fewer.
        profiles: int64 (B, P), the users' codes; None where there are none.
    """

    rows: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    profiles: npt.NDArray[np.int64] | None = None


class Learnable(Protocol):
    """Sequences to train on: all in memory, or read from disk part by part."""

    @property
    def profiles(self) -> npt.NDArray[np.int64] | None:
        """As `Sequences` has them."""

    @property
    def example_count(self) -> int:
        """How many positions can be learned from."""

    def __len__(self) -> int:
        """How many users."""

    def blocks(self) -> "Iterator[Sequences]":
        """All of it in order, in parts of whole users that fit in memory."""

    def sample(self) -> "Sequences":
        """As many of the users, drawn evenly, as fit in memory."""

    def epoch(
        self,
        rng: np.random.Generator,
        *,
        batch_size: int,
        window_length: int,
        targets: int,
        horizon: int,
        batches: int | None = None,
    ) -> Iterator[Batch]:
        """See `Sequences.epoch`."""


def item_counts(sequences: Learnable, items: int) -> npt.NDArray[np.int64]:
    """How often rows 1..N were clicked: int64 (N,)."""
    counts = np.zeros(items + 1, np.int64)
    for block in sequences.blocks():
        counts += np.bincount(block.rows, minlength=items + 1)
    return counts[1:]


@dataclass(frozen=True)
class Sequences:
    """All clicks as rows of an item table, user after user, oldest first.

    Attributes:
        rows: int32 (C,), rows 1..N; 0 for an item that the table does not have.
        starts: int64 (U+1,), user `u` has `rows[starts[u]:starts[u + 1]]`.
        profiles: int64 (U, P), a code for each field of a user's profile, 0 where it is not known;
            None where there is no profile.
    """

    rows: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    profiles: npt.NDArray[np.int64] | None = None

    @classmethod
    def from_log(cls, log: ClickLog, item_ids: Sequence[str]) -> "Sequences":
        """Sequences of a log's users, in the order of its `user_ids`.

        Args:
            log: the clicks.
            item_ids: the ids that rows 1..N of the item table stand for.
        """
        row_of = {item: row for row, item in enumerate(item_ids, start=1)}
        table = np.array([row_of.get(item, 0) for item in log.item_ids], dtype=np.int32)
        counts = np.bincount(log.users, minlength=len(log.user_ids))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(table[log.items] if len(log) else np.zeros(0, np.int32), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def example_count(self) -> int:
        """How many positions can be learned from."""
        return len(self.example_positions())

    def blocks(self) -> "Iterator[Sequences]":
        """All of it at once."""
        yield self

    def sample(self) -> "Sequences":
        """All of it."""
        return self

    def windows_before(
        self, positions: npt.NDArray[np.int64], length: int
    ) -> npt.NDArray[np.int64]:
        """The window each user had just before a click: int64 (B, L), L the longest of them.

        Args:
            positions: int64 (B,), positions in `rows`.
            length: the longest a window may be.
        """
        begins = self.starts[np.searchsorted(self.starts, positions, side="right") - 1]
        return self._windows(np.maximum(begins, positions - length), positions)

    def last_windows(self, length: int) -> npt.NDArray[np.int64]:
        """Each user's newest window: int64 (U, L)."""
        ends = self.starts[1:]
        return self._windows(np.maximum(self.starts[:-1], ends - length), ends)

    def _windows(
        self, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        longest = int((ends - begins).max(initial=0))
        index = begins[:, None] + np.arange(longest)  # (B, L)
        return self._rows_at(index, index < ends[:, None])

    def _rows_at(
        self, index: npt.NDArray[np.int64], inside: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """Rows at positions, 0 where not inside."""
        rows = np.zeros(index.shape, np.int64)
        rows[inside] = self.rows[index[inside]]
        return rows

    def example_positions(self) -> npt.NDArray[np.int64]:
        """Positions that can be learned from: known items with a click before them."""
        learnable = self.rows != 0
        firsts = self.starts[:-1]
        learnable[firsts[firsts < len(self.rows)]] = False
        return np.flatnonzero(learnable)

    def epoch(
        self,
        rng: np.random.Generator,
        *,
        batch_size: int,
        window_length: int,
        targets: int,
        horizon: int,
        batches: int | None = None,
    ) -> Iterator[Batch]:
        """One pass in random order: from each position, its window and what follows it.

        With `targets = horizon = 1` these are the paper's examples: a window and the next click.
        More targets of one window cost little, since the window is encoded once for all of them.

        Args:
            rng: of the order and of the targets drawn.
            batch_size: B; the last batch may be smaller.
            window_length: the longest a window may be.
            targets: T, clicks to predict from a window.
            horizon: they are drawn, without repetition, from this many clicks after the window.
            batches: end after so many; None for all.
        """
        positions = rng.permutation(self.example_positions())
        left = len(positions) if batches is None else batches
        ends = self.starts[np.searchsorted(self.starts, positions, side="right")]
        users = np.searchsorted(self.starts, positions, side="right") - 1
        begins = self.starts[users]
        lengths = np.minimum(positions - begins, window_length)
        block = batch_size * BATCHES_SORTED_TOGETHER
        for start in range(0, len(positions), block):
            chosen = np.arange(start, min(start + block, len(positions)))
            chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
            parts = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
            for part in rng.permutation(len(parts)):
                if not left:
                    return
                left -= 1
                at = parts[part]
                yield Batch(
                    rows=self.windows_before(positions[at], window_length),
                    targets=self._targets(rng, positions[at], ends[at], targets, horizon),
                    profiles=None if self.profiles is None else self.profiles[users[at]],
                )

    def _targets(
        self,
        rng: np.random.Generator,
        positions: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        targets: int,
        horizon: int,
    ) -> npt.NDArray[np.int64]:
        if horizon == 1:
            return self.rows[positions][:, None].astype(np.int64)
        ahead = positions[:, None] + np.arange(horizon)  # (B, horizon)
        inside = ahead < ends[:, None]
        order = np.where(inside, rng.random(ahead.shape), 2.0)
        drawn = np.argsort(order, axis=1)[:, :targets]  # those outside come last
        index = np.take_along_axis(ahead, drawn, axis=1)
        kept = np.take_along_axis(inside, drawn, axis=1)
        return self._rows_at(index, kept)
