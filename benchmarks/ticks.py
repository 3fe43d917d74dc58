"""What a Milvus server's time tick costs readers who want everything, and the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from benchmarks.freshness import until_readable
from benchmarks.ground import WIDTH, Ground
from benchmarks.results import Result, percentiles_ms
from benchmarks.throughput import used_s
from deploy.local_milvus import LocalMilvusServer
from encoder.interest_index import InterestIndex
from encoder.settings import MilvusSettings

_TICKS_MS: Final = (200, 50, 20, 10)  # the first is Milvus's own
_WRITES: Final = 200
_IDLE_S: Final = 10.0


def ticks(ground: Ground) -> Iterator[Result]:
    """With each tick: from a write until a strong read has it, and what an idle server uses.

    There are the collections of one release. The floor is Milvus's own tick.
    """
    rng = np.random.default_rng(ground.seed)
    own: dict[str, float] = {}
    for tick_ms in _TICKS_MS:
        with LocalMilvusServer(tick_ms=tick_ms) as server:
            index = InterestIndex(MilvusSettings(uri=server.uri))
            try:
                index.create_release("bare", WIDTH)
                before = used_s({"milvus": server.pid})
                time.sleep(_IDLE_S)
                idle = (used_s({"milvus": server.pid})["milvus"] - before["milvus"]) / _IDLE_S
                seconds = []
                for number in range(ground.size(_WRITES)):
                    time.sleep(rng.uniform(0, 0.2))  # at any time between two ticks
                    began = time.perf_counter()
                    until_readable(index, "bare", number)
                    seconds.append(time.perf_counter() - began)
            finally:
                index.close()
        found = percentiles_ms(seconds)
        own = own or found
        yield Result(
            f"tick-{tick_ms}-p50",
            found["p50_ms"],
            "ms",
            own["p50_ms"],
            details={**found, "idle_cores": idle, "writes": len(seconds)},
        )
