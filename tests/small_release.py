"""A small real release for tests: untrained weights, the real model, the real export."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from encoder.item_fields import ItemFieldVectors
from encoder.mix import Mix
from encoder.release import Release, TrainingRecord, write_release
from training.export import export_graph
from training.model import Mind

_GRAPHS: dict[tuple[int, int, int, int, int], tuple[bytes, Mind]] = {}


def make_small_release(
    folder: Path,
    *,
    items: int = 200,
    width: int = 16,
    interests: int = 4,
    window_length: int = 20,
    seed: int = 0,
    name: str = "r_small",
    item_fields: ItemFieldVectors | None = None,
    mix: Mix | None = None,
    marks: int = 0,
) -> Release:
    """Write a release with items `item-1` … `item-N` (and a title for each) to `folder`.

    With marks, items have colours at random.

    With a mix, items are the more popular the higher their number, and the first ten are not.
    """
    key = (items, width, interests, seed, marks)
    if key not in _GRAPHS:  # exporting takes seconds, and tests ask for the same one many times
        model = Mind(items, width=width, interests=interests, fade=0.1, seed=seed)
        if marks:
            colours = np.random.default_rng(seed).integers(marks, size=items + 1)
            colours[0] = -1
            model.mark(torch.from_numpy(colours), marks)
        with _no_collector():
            _GRAPHS[key] = (export_graph(model), model)
    graph, model = _GRAPHS[key]
    table = model.served_table().detach().numpy()
    return write_release(
        folder,
        encoder=graph,
        items=table,
        item_ids=[f"item-{row}" for row in range(1, items + 1)],
        release=name,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        window_length=window_length,
        interests=interests,
        routing_iterations=model.iterations,
        training=TrainingRecord(
            since_ms=0, until_ms=0, clicks=0, users=0, preset="untrained", seed=seed
        ),
        item_fields=item_fields,
        mix=mix,
        marks=marks,
        popularity=None if mix is None else _popularity(items),
        features=pa.table({"title": [f"Title of item {row}" for row in range(1, items + 1)]}),
    )


@contextmanager
def _no_collector() -> Iterator[None]:
    """Syntax trees can be made in two threads: here by the export, and in a worker by `np.load`.

    Before 3.11.8 CPython counts their depth in one place for all threads; the collector, run within
    one, lets another thread in (https://github.com/python/cpython/issues/106905).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _popularity(items: int) -> np.ndarray:
    return np.maximum(0, np.linspace(-10 / items, 1, items)).astype(np.float32)
