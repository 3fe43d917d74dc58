"""Which items are clicked close to each other, and item vectors smoothed over that.

N items, D vector width, E edges.
"""

import warnings
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from training.sequences import Learnable, Sequences

_PAIRS_HELD: Final = 16_000_000  # 16 bytes each, and several times that while they are counted
_ROUNDS: Final = 12
_SPARE: Final = 16  # vectors iterated beside those wanted: the last to come out settle slowest


def co_clicks(
    sequences: Learnable, items: int, *, reach: int, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """How often two items are clicked by the same user with fewer than `reach` clicks between.

    Sequences in parts are counted part by part. While all pairs fit, that is exact; when there are
    more than `_PAIRS_HELD`, and than four times `most` per item, only twice `most` of the heaviest
    so far are kept of each item, so that a pair which is rare in every part may be missed or
    counted too low. The sums of the ends stay exact.

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
    size = items + 1
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.float64)
    sums = np.zeros(size, np.float64)
    for block in sequences.blocks():
        found, times = _pairs(block, size, reach)
        sums += np.bincount(found // size, times, minlength=size)
        codes, counts = _added(codes, counts, found, times) if len(codes) else (found, times)
        if len(codes) > max(_PAIRS_HELD, 4 * most * items):
            kept = _kept(codes, _weights(codes, counts, sums), size, 2 * most)
            codes, counts = codes[kept], counts[kept]
    weights = _weights(codes, counts, sums)
    kept = _kept(codes, weights, size, most)
    ends, others = np.divmod(codes[kept], size)
    return ends, others, weights[kept]


def _pairs(
    sequences: Sequences, size: int, reach: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs of rows as `end * size + other`, ascending, and how often each is there."""
    rows = sequences.rows.astype(np.int64)
    user = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts))
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.float64)
    for step in range(1, reach + 1):
        first, second = rows[:-step], rows[step:]
        same = (user[:-step] == user[step:]) & (first != second) & (first > 0) & (second > 0)
        pairs = np.concatenate(
            [first[same] * size + second[same], second[same] * size + first[same]]
        )
        found, times = np.unique(pairs, return_counts=True)
        codes, counts = _added(codes, counts, found, times.astype(np.float64))
    return codes, counts


def _added(
    codes: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float64],
    more: npt.NDArray[np.int64],
    times: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    codes, place = np.unique(np.concatenate([codes, more]), return_inverse=True)
    summed = np.bincount(place, weights=np.concatenate([counts, times]))
    return codes, summed.astype(np.float64)


def _weights(
    codes: npt.NDArray[np.int64], counts: npt.NDArray[np.float64], sums: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    ends, others = np.divmod(codes, len(sums))
    degree = np.maximum(sums, 1.0)
    weights: npt.NDArray[np.float64] = counts / np.sqrt(degree[ends] * degree[others])
    return weights.astype(np.float32)


def _kept(
    codes: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], size: int, most: int
) -> npt.NDArray[np.bool_]:
    """Which pairs are among the `most` heaviest of either end; `codes` ascend."""
    ends, others = np.divmod(codes, size)
    kept = _heaviest(ends, weights, most)
    return kept | kept[np.searchsorted(codes, others * size + ends)]  # the same the other way


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
        self._matrix = _square(
            torch.from_numpy(starts),
            torch.from_numpy(others[order]),
            torch.from_numpy(weights[order]),
        )

    @classmethod
    def of_clicks(cls, sequences: Learnable, items: int, *, reach: int, most: int) -> "ItemGraph":
        """The graph of `co_clicks`."""
        return cls(items, *co_clicks(sequences, items, reach=reach, most=most))

    def neighbours(self, vectors: Tensor) -> Tensor:
        """The weighted sum of each row's neighbours: float32 (N+1, D) to the same."""
        return _Multiply.apply(self._matrix, vectors)  # type: ignore[no-any-return]

    def leading_vectors(self, width: int, generator: torch.Generator) -> Tensor:
        """Where items lie in the graph as a whole: neighbours of neighbours lie near each other.

        The eigenvectors of the largest eigenvalues, each times the root of its eigenvalue, nearly:
        a few rounds of subspace iteration (Halko et al., SIAM Review 2011).

        Args:
            width: how many eigenvectors; the columns beyond N, if it is more, are zero.
            generator: of what the iteration starts from.

        Returns:
            float32 (N+1, width); zero in rows without an edge.
        """
        matrix = self._damped()
        count = min(width, matrix.shape[0] - 1)
        basis = torch.randn(
            matrix.shape[0], min(count + _SPARE, matrix.shape[0]), generator=generator
        )
        for _ in range(_ROUNDS):
            # Eigenvalues lie within -1 and 1; with half added, none below 0 outweighs one above.
            basis, _ = torch.linalg.qr(matrix @ basis + 0.5 * basis)
        values, turned = torch.linalg.eigh(basis.T @ (matrix @ basis))  # ascending
        last = slice(len(values) - count, None)
        leading = (basis @ turned)[:, last] * values[last].clamp(min=0).sqrt()
        some = self._edge_counts() > 0
        return functional.pad(leading * some.unsqueeze(1), (0, width - count))

    def _edge_counts(self) -> Tensor:
        starts = self._matrix.crow_indices()
        return (starts[1:] - starts[:-1]).to(torch.float32)  # (N+1,)

    def _damped(self) -> Tensor:
        # A pair of items that only have each other has an eigenvalue of 1, as the whole graph has,
        # so that many such pairs would take all the leading eigenvectors. With weights damped where
        # there are few edges they come last (after Amini et al., Annals of Statistics 2013, who add
        # a constant to degrees).
        counts = self._edge_counts()
        share = (counts / (counts + counts[1:].mean().clamp(min=1))).sqrt()
        starts, others = self._matrix.crow_indices(), self._matrix.col_indices()
        ends = torch.repeat_interleave(torch.arange(len(counts)), starts[1:] - starts[:-1])
        weights = self._matrix.values() * share[ends] * share[others]
        return _square(starts, others, weights)


def _square(starts: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    rows = len(starts) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, others, weights, size=(rows, rows), check_invariants=True
        )


class _Multiply(torch.autograd.Function):
    """A symmetric sparse matrix times a dense one; torch's own gradient turns the matrix round."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, vectors: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ gradients[0]
