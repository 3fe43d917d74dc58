"""A small release whose items have fields, for tests of items that appear later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder.item_fields import ItemField, ItemFieldVectors
from encoder.release import Release
from tests.small_release import make_small_release

ITEMS, WIDTH, LENGTH = 60, 8, 8
FIELDS = (
    ItemField(name="title", kind="words", values=("blue", "cup", "red")),
    ItemField(name="brand", kind="value", values=("acme", "best")),
    ItemField(name="price", kind="band", edges=(1.0, 10.0)),
)


def field_vectors(seed: int = 0, width: int = WIDTH) -> ItemFieldVectors:
    """Vectors of the values of `FIELDS`, drawn."""
    rng = np.random.default_rng(seed)
    vectors: NDArray[np.float32] = rng.standard_normal((8, width)).astype(np.float32)
    return ItemFieldVectors(FIELDS, vectors)


def release_with_fields(folder: Path, name: str, *, seed: int = 0) -> Release:
    """As `tests.deployment.small_release`, with fields."""
    return make_small_release(
        folder / name,
        items=ITEMS,
        width=WIDTH,
        interests=3,
        window_length=LENGTH,
        seed=seed,
        name=name,
        item_fields=field_vectors(seed),
    )
