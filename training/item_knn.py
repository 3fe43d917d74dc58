"""Item-to-item nearest neighbours, what learned models are measured against.

N items, U users.
"""

import numpy as np
import numpy.typing as npt

from training.sequences import Sequences

_ITEMS_PER_USER = 500  # the newest; pairs grow with the square
_PAIRS_AT_ONCE = 20_000_000


class ItemKnn:
    """Scores an item by its cosine with each of a user's items, over the users who clicked both.

    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001.
    """

    def __init__(self, sequences: Sequences, items: int) -> None:
        """Count.

        Args:
            sequences: rows 1..N.
            items: N.
        """
        size = items + 1
        codes, counts = np.zeros(0, np.int64), np.zeros(0, np.float64)
        clicked = np.zeros(size, np.int64)
        waiting: list[npt.NDArray[np.int64]] = []
        for start, end in zip(sequences.starts[:-1], sequences.starts[1:], strict=True):
            own = np.unique(sequences.rows[max(start, end - _ITEMS_PER_USER) : end])
            own = own[own > 0].astype(np.int64)
            clicked[own] += 1
            waiting.append((own[:, None] * size + own[None, :]).ravel())
            if sum(map(len, waiting)) > _PAIRS_AT_ONCE:
                codes, counts = _added(codes, counts, waiting)
                waiting = []
        codes, counts = _added(codes, counts, waiting)
        ends, others = codes // size, codes % size
        apart = ends != others
        ends, self._others = ends[apart], others[apart]
        lengths = np.sqrt(clicked[ends] * clicked[self._others])
        self._cosines = counts[apart] / lengths
        self._starts = np.searchsorted(ends, np.arange(size + 1))
        self._size = size

    def search(self, windows: npt.NDArray[np.int64], top: int) -> npt.NDArray[np.int64]:
        """Best items first.

        Args:
            windows: int64 (U, L), rows; 0 where there is none.
            top: how many.

        Returns:
            int64 (U, top) rows; -1 where no further item has anything in common with the window.
        """
        found = np.full((len(windows), top), -1, np.int64)
        for place, window in enumerate(windows):
            parts = [slice(*self._starts[row : row + 2]) for row in window[window > 0]]
            if not parts:
                continue
            others = np.concatenate([self._others[part] for part in parts])
            cosines = np.concatenate([self._cosines[part] for part in parts])
            scores = np.bincount(others, cosines, minlength=self._size)
            best = np.argsort(-scores, kind="stable")[:top]
            best = best[scores[best] > 0]
            found[place, : len(best)] = best
        return found


def _added(
    codes: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float64],
    more: list[npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs and how often they were seen, with further ones counted in."""
    found, times = np.unique(np.concatenate([codes[:0], *more]), return_counts=True)
    merged, place = np.unique(np.concatenate([codes, found]), return_inverse=True)
    summed = np.bincount(place, weights=np.concatenate([counts, times]))
    return merged, summed.astype(np.float64)
