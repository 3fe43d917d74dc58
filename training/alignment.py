"""A model turned so that its items lie where those of an earlier release do.

Training fixes only products of vectors, so that two runs end up in bases that have nothing to do
with each other. An orthogonal map takes one to the other and leaves all products as they are.

N items, D vector width, K interests.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.model import Mind

Vectors = npt.NDArray[np.float32]


def shared_rows(
    item_ids: Sequence[str], others: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the items that two tables share, in the first and in the second; from 1, as rows are.

    Args:
        item_ids: the ids that rows 1..N of the first table stand for.
        others: the same of the second.
    """
    row_of = {item: row for row, item in enumerate(others, start=1)}
    pairs = [(row, row_of[item]) for row, item in enumerate(item_ids, start=1) if item in row_of]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def rotation(vectors: Vectors, towards: Vectors) -> npt.NDArray[np.float64]:
    """The orthogonal map that takes vectors nearest to others, by least squares.

    Orthogonal Procrustes problem (Schönemann, Psychometrika 1966).

    Args:
        vectors: float32 (N, D).
        towards: float32 (N, D), where each should come to lie.

    Returns:
        R, float64 (D, D): `vectors @ R` is nearest to `towards`.
    """
    left, _, right = np.linalg.svd(vectors.astype(np.float64).T @ towards.astype(np.float64))
    turned: npt.NDArray[np.float64] = left @ right
    return turned


def turn(model: Mind, rotation: npt.NDArray[np.float64]) -> None:
    """Write a model down in another basis: the same scores, weights and slots, up to rounding.

    Args:
        model: changed in place.
        rotation: R, float64 (D, D), orthogonal; a vector v becomes `v @ R`.

    Raises:
        ValueError: the model has a parameter of which it is not known how it turns.
    """
    by = torch.from_numpy(rotation)

    def turned(name: str, value: Tensor) -> Tensor:
        match name:
            case "table" | "field_table":
                return value @ by
            case "bilinear":
                return by.T @ value @ by
            case "directions" | "layers.2.weight":
                return by.T @ value
            case "layers.0.weight" | "layers.2.bias":
                return value @ by
            case "layers.0.bias":  # within the layer, where there is no basis to turn
                return value
        raise ValueError(f"how {name} turns with the model's vectors must be said in {__name__}")

    state = {
        name: turned(name, value.double()).float() for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)


def mean_cosine(
    vectors: Vectors,
    others: Vectors,
    rows: npt.NDArray[np.int64],
    other_rows: npt.NDArray[np.int64],
) -> float:
    """Mean cosine between rows of one table and rows of another; NaN without any."""
    a, b = vectors[rows], others[other_rows]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    some = lengths > 0
    products = np.einsum("nd,nd->n", a[some], b[some]) / lengths[some]
    return float(products.mean()) if some.any() else float("nan")
