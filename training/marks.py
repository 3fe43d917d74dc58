"""Marks: a few numbers more per vector, by which a search over vectors leaves out own items.

Nothing lies nearer to an interest than the clicks that it was made of. In some logs that is what
users want, since they order again; in others, such as reviews, it wastes the first places. An inner
product cannot leave out a list, but it can leave out a colour: every item has one of a few colours,
in a coordinate of its own, and an interest is negative in the colours of the user's clicks. Items
that are clicked close to each other get different colours, so that what lies near the user's own
items stays, and of what lies further off a small share is lost.

N items, E edges.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from training.item_graph import co_clicks
from training.model import Mind
from training.sequences import Learnable

_REACH: Final = 5
_MOST: Final = 128

Rows = npt.NDArray[np.int64]


def mark(model: Mind, sequences: Learnable, marks: int, before: Rows | None = None) -> None:
    """Colour a trained model's items, if it is to have marks.

    Args:
        model: changed in place.
        sequences: that it was trained on.
        marks: how many colours; 0 for none.
        before: int64 (N+1,), colours to keep; -1 for items that have none yet.
    """
    if not marks:
        return
    items = len(model.table) - 1
    edges = co_clicks(sequences, items, reach=_REACH, most=_MOST)
    model.mark(torch.from_numpy(coloured(items, *edges, marks, before)), marks)


def coloured(
    items: int,
    ends: Rows,
    others: Rows,
    weights: npt.NDArray[np.float32],
    colours: int,
    before: Rows | None = None,
) -> Rows:
    """Colours under which the two ends of an edge seldom have the same.

    Greedy: items in turn, those of most edges first, take the colour that weighs least among the
    neighbours that have one, and of several such the one that fewest items have.

    Args:
        items: N.
        ends: int64 (E,), ascending; every edge is there in both directions.
        others: int64 (E,).
        weights: float32 (E,).
        colours: how many.
        before: int64 (N+1,), colours to keep; -1 for items that have none yet.

    Returns:
        int64 (N+1,), from 0; -1 for row 0, which is no item.
    """
    found = np.full(items + 1, -1) if before is None else before.copy()
    starts = np.searchsorted(ends, np.arange(items + 2))
    used = np.bincount(found[found >= 0], minlength=colours)
    for row in np.argsort(-np.diff(starts), kind="stable").tolist():
        if row == 0 or found[row] >= 0:
            continue
        edges = slice(starts[row], starts[row + 1])
        near = found[others[edges]]
        has = near >= 0
        cost = np.bincount(near[has], weights[edges][has], minlength=colours)
        found[row] = np.lexsort((used, cost))[0]
        used[found[row]] += 1
    return found


def colours_of(marks: npt.NDArray[np.float32]) -> Rows:
    """Each item's colour, from the columns that mark it: int64 (N+1,), -1 for none.

    Args:
        marks: float32 (N+1, C); C may be 0.
    """
    found = np.full(len(marks), -1)
    rows, colours = np.nonzero(marks)
    found[rows] = colours
    return found
