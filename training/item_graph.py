"""Which items are clicked close to each other, and item vectors smoothed over that.

N items, D vector width, E edges.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.sequences import Sequences


def co_clicks(
    sequences: Sequences, items: int, *, reach: int, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """How often two items are clicked by the same user with fewer than `reach` clicks between.

    Args:
        sequences: rows 1..N of the table; clicks on row 0 count for nothing.
        items: N.
        reach: how many clicks further on the second may be.
        most: an edge is kept if it is among the so many heaviest of either of its ends.

    Returns:
        Both ends of every edge, int64 (E,), and its weight, float32 (E,): the number of times over
        the square root of both ends' sums, as in a symmetrically normalised adjacency matrix.
        Every edge is there in both directions.
    """
    rows = sequences.rows.astype(np.int64)
    user = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts))
    size = items + 1
    codes = np.zeros(0, np.int64)
    counts = np.zeros(0, np.float64)
    for step in range(1, reach + 1):
        first, second = rows[:-step], rows[step:]
        same = (user[:-step] == user[step:]) & (first != second) & (first > 0) & (second > 0)
        pairs = np.concatenate(
            [first[same] * size + second[same], second[same] * size + first[same]]
        )
        found, times = np.unique(pairs, return_counts=True)
        merged = np.concatenate([codes, found])
        codes, place = np.unique(merged, return_inverse=True)
        summed = np.bincount(place, weights=np.concatenate([counts, times]))
        counts = summed.astype(np.float64)
    ends, others = codes // size, codes % size
    degree = np.maximum(np.bincount(ends, counts, minlength=size), 1.0)
    weights = (counts / np.sqrt(degree[ends] * degree[others])).astype(np.float32)
    kept = _heaviest(ends, weights, most)
    kept |= kept[np.searchsorted(codes, others * size + ends)]  # and the same edge the other way
    return ends[kept], others[kept], weights[kept]


def _heaviest(
    ends: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], most: int
) -> npt.NDArray[np.bool_]:
    """Which edges are among the `most` heaviest of their first end; `ends` ascend."""
    order = np.lexsort((-weights, ends))
    place = np.arange(len(ends)) - np.searchsorted(ends, ends[order])
    kept = np.zeros(len(ends), bool)
    kept[order] = place < most
    return kept


class ItemGraph:
    """A symmetric graph over the rows of an item table.

    Args:
        items: N; the table has N+1 rows, and row 0 has no edge.
        ends: int64 (E,), every edge in both directions.
        others: int64 (E,).
        weights: float32 (E,).
    """

    def __init__(
        self,
        items: int,
        ends: npt.NDArray[np.int64],
        others: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float32],
    ) -> None:
        self.edges = len(ends)
        order = np.lexsort((others, ends))
        starts = np.searchsorted(ends[order], np.arange(items + 2))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self._matrix = torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(others[order]),
                torch.from_numpy(weights[order]),
                size=(items + 1, items + 1),
                check_invariants=True,
            )

    @classmethod
    def of_clicks(cls, sequences: Sequences, items: int, *, reach: int, most: int) -> "ItemGraph":
        """The graph of `co_clicks`."""
        return cls(items, *co_clicks(sequences, items, reach=reach, most=most))

    def neighbours(self, vectors: Tensor) -> Tensor:
        """The weighted sum of each row's neighbours: float32 (N+1, D) to the same."""
        return _Multiply.apply(self._matrix, vectors)  # type: ignore[no-any-return]


class _Multiply(torch.autograd.Function):
    """A symmetric sparse matrix times a dense one; torch's own gradient turns the matrix round."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, vectors: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ gradients[0]
