"""The items nearest to interests, by an exhaustive search in bounded memory.

U users, K interests, D vector width, N items, M further ones.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_SCORES_AT_ONCE: Final = 16_000_000  # floats held during the search


def nearest_rows(
    vectors: NDArray[np.float32],
    counts: NDArray[np.int64],
    items: NDArray[np.float32],
    n: int,
    *,
    further: NDArray[np.float32] | None = None,
    left_out: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Each user's items by their best inner product with any interest, best first.

    Args:
        vectors: float32 (U, K, D).
        counts: int64 (U,), how many of the K are used.
        items: float32 (N, D).
        n: how many items.
        further: float32 (M, D), items after those; none if None.
        left_out: distinct positions of items not to be found; none if None.

    Returns:
        int64 (U, n) or as many as there are, positions in `items` and, from N on, in `further`; -1
        throughout for users without an interest.
    """
    users, slots, width = vectors.shape
    total = len(items) + (0 if further is None else len(further))
    n = min(n, total - (0 if left_out is None else len(left_out)))
    found = np.full((users, n), -1, np.int64)
    if not n:
        return found
    step = max(1, _SCORES_AT_ONCE // (slots * total))
    for start in range(0, users, step):
        part = slice(start, start + step)
        flat = vectors[part].reshape(-1, width)
        scores = flat @ items.T
        if further is not None and len(further):
            scores = np.concatenate([scores, flat @ further.T], axis=1)
        scores = scores.reshape(-1, slots, total)
        if left_out is not None:
            scores[:, :, left_out] = -np.inf
        scores[np.arange(slots) >= counts[part, None]] = -np.inf
        best = scores.max(axis=1)  # (u, N)
        rows = np.argpartition(-best, n - 1, axis=1)[:, :n]
        order = np.argsort(-np.take_along_axis(best, rows, axis=1), axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        found[part] = np.where(counts[part, None] > 0, rows, -1)
    return found
