"""Inner products of a few vectors with very many, and the largest of them, on one core."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# So small a product is computed where its operands lie. A large one is copied into another layout
# first, which takes longer than computing it, and divided among threads, which wait for each other
# where the cores are busy.
_ROWS_AT_ONCE: Final = 64
_PARTS: Final = 20  # for each score that is asked for


class InnerProducts:
    """With N vectors, which are kept. Does not change."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """Keep a copy of the vectors, float32 (N, D)."""
        self._count, width = len(vectors), vectors.shape[1]
        blocks = -(-self._count // _ROWS_AT_ONCE)
        rows = np.zeros((blocks * _ROWS_AT_ONCE, width), np.float32)
        rows[: self._count] = vectors
        self._blocks = rows.reshape(blocks, _ROWS_AT_ONCE, width).transpose(0, 2, 1)

    def __len__(self) -> int:
        return self._count

    def of(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each of n vectors (n, D) with all N: float32 (n, N)."""
        products = (vectors @ self._blocks).transpose(1, 0, 2)
        in_rows = products.reshape(len(vectors), len(self._blocks) * _ROWS_AT_ONCE)
        return in_rows[:, : self._count]


def largest(scores: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Where the `limit` largest of N scores are, largest first; N is at least `limit`."""
    rows = _candidates(scores, limit)
    if len(rows) > limit:
        rows = rows[np.argpartition(scores[rows], len(rows) - limit)[-limit:]]
    return rows[np.argsort(-scores[rows])]


def _candidates(scores: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Where the `limit` largest are, and few others.

    As many parts have a score of at least the limit-th largest of the parts' maxima, so that none
    below it is asked for.
    """
    size = len(scores) // (_PARTS * limit)
    if size < 2:
        return np.arange(len(scores))
    parts = len(scores) // size
    maxima = scores[: parts * size].reshape(parts, size).max(axis=1)
    return np.flatnonzero(scores >= np.partition(maxima, parts - limit)[parts - limit])
