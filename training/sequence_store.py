"""Sequences that stay on disk, and are read into memory a buffer's worth at a time.

They are read with plain reads rather than mapped: pages of a mapped file that were touched count as
memory in use, so that a bound could be neither kept nor checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from training.click_log import ClickLogError
from training.sequences import Batch, Sequences

ITEMS_FILE: Final = "items.int32"
LENGTHS_FILE: Final = "lengths.int64"
BLOCKS_TOGETHER: Final = 8
"""So many are in memory at once; each pass puts others together."""


@dataclass(frozen=True)
class Block:
    """Some users' clicks, side by side in the files.

    Attributes:
        first_click: where in `ITEMS_FILE` they begin.
        clicks: how many.
        first_user: where in `LENGTHS_FILE` their users begin.
        users: how many.
    """

    first_click: int
    clicks: int
    first_user: int
    users: int


class StoredSequences:
    """Sequences of which `BLOCKS_TOGETHER` blocks are in memory. The order of users means nothing.

    Args:
        folder: holds `ITEMS_FILE`, a number for each click's item, user after user and oldest
            first, and `LENGTHS_FILE`, each user's number of clicks.
        blocks: of users drawn at random.
        table: int32, an item's number to its row 1..N, or to 0 if the item table does not have it.
    """

    profiles: None = None

    def __init__(self, folder: Path, blocks: list[Block], table: npt.NDArray[np.int32]) -> None:
        self._folder = folder
        self._blocks = blocks
        self._table = table

    def __len__(self) -> int:
        return sum(block.users for block in self._blocks)

    @cached_property
    def _example_counts(self) -> list[int]:
        return [block.example_count for block in self.blocks()]

    @property
    def example_count(self) -> int:
        """How many positions can be learned from."""
        return sum(self._example_counts)

    def blocks(self) -> Iterator[Sequences]:
        """One after the other."""
        for block in self._blocks:
            yield self._read([block])

    def sample(self) -> Sequences:
        """The first blocks: half of what is in memory otherwise, so that there is room for a copy.

        All of them if there are no more.
        """
        return self._read(self._blocks[: BLOCKS_TOGETHER // 2])

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
        """One pass in an order that is random within bounds.

        Some blocks are drawn and read, and the positions of all of them are mixed, as
        `Sequences.epoch` does; then come others. With fewer `batches` than make a pass, all blocks
        give their share of them, so that a short training sees users from all of the log.
        """
        order = rng.permutation(len(self._blocks)).tolist()
        groups = [
            order[first : first + BLOCKS_TOGETHER]
            for first in range(0, len(order), BLOCKS_TOGETHER)
        ]
        sizes = [sum(self._example_counts[number] for number in group) for group in groups]
        whole = -(-sum(sizes) // batch_size)
        due = 0
        for group, reached in zip(groups, accumulate(sizes), strict=True):
            share = None
            if batches is not None and batches < whole:
                before, due = due, round(batches * reached / sum(sizes))
                if (share := due - before) == 0:
                    continue
            yield from self._read([self._blocks[number] for number in group]).epoch(
                rng,
                batch_size=batch_size,
                window_length=window_length,
                targets=targets,
                horizon=horizon,
                batches=share,
            )

    def _read(self, blocks: list[Block]) -> Sequences:
        rows = np.empty(sum(block.clicks for block in blocks), np.int32)
        starts = np.zeros(sum(block.users for block in blocks) + 1, np.int64)
        click = user = 0
        for block in blocks:
            items = self._numbers(ITEMS_FILE, np.int32, block.first_click, block.clicks)
            lengths = self._numbers(LENGTHS_FILE, np.int64, block.first_user, block.users)
            rows[click : click + block.clicks] = self._table[items]
            starts[user + 1 : user + 1 + block.users] = click + np.cumsum(lengths)
            click += block.clicks
            user += block.users
        return Sequences(rows, starts)

    def _numbers(
        self, name: str, dtype: npt.DTypeLike, first: int, count: int
    ) -> npt.NDArray[np.int64]:
        path = self._folder / name
        offset = first * np.dtype(dtype).itemsize
        found: npt.NDArray[np.int64] = np.fromfile(path, dtype, count, offset=offset)
        if len(found) < count:
            raise ClickLogError(f"{path} is shorter than it was written; train again")
        return found
