"""How long a reader takes to search the items in its own memory, by their width."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.ground import INTERESTS, ITEMS, Ground
from benchmarks.results import Result, percentiles_ms
from lookup.item_table import ItemTable

_WIDTHS: Final = (64, 128, 192)  # the last is of a default release with marks
_LIMIT: Final = 50
_SEARCHES: Final = 300
_PAUSE_S: Final = 0.003  # so that, as in a service, something else was in the caches


def search_in_memory(ground: Ground) -> Iterator[Result]:
    """50 items nearest to any of four interests; the floor is a plain product and its largest."""
    rng = np.random.default_rng(ground.seed)
    count = ground.size(ITEMS)
    for width in _WIDTHS:
        items = _drawn(rng, count, width)
        columns = np.ascontiguousarray(items.T)
        table = ItemTable([f"item-{row}" for row in range(count)], items)
        ours, plain = [], []
        for _ in range(ground.size(_SEARCHES)):
            interests = _drawn(rng, INTERESTS, width)
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            hits = table.nearest_to_any(interests, _LIMIT)
            ours.append(time.perf_counter() - began)
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            best = (interests @ columns).max(axis=0)
            rows = np.argpartition(best, -_LIMIT)[-_LIMIT:]
            plain.append(time.perf_counter() - began)
            scores = np.sort(best[rows])[::-1]
            if not np.allclose([hit.score for hit in hits], scores, rtol=0, atol=1e-5):
                raise SystemExit(f"search-in-memory: other items than by a plain product, {width}")
        found, floor = percentiles_ms(ours), percentiles_ms(plain)
        details: dict[str, object] = {**found, "items": count, "searches": len(ours)}
        for at in ("p50_ms", "p99_ms"):
            name = f"search-in-memory-{width}-{at[:3]}"
            yield Result(name, found[at], "ms", floor[at], details=details)


def _drawn(rng: np.random.Generator, count: int, width: int) -> NDArray[np.float32]:
    """Unit vectors (count, width)."""
    vectors = rng.standard_normal((count, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
