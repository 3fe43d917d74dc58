"""What clicks notice of a restart: of the rows that a worker writes once more a session later."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from benchmarks.freshness import clicks_at
from benchmarks.ground import PARTITIONS, Ground, StoreName, serving
from benchmarks.results import Result, at_most, say
from benchmarks.switches import freshness_p99_s
from encoder.click import Click
from mindstream.replay import replay
from tests.deployment import Deployment, wait_until

_SESSION_S = 6.0
_RATE = 500  # clicks a second
_BACKLOG = 5_000  # clicks before it: whose users are those to be written again
_SPAN_S = 25.0
_LONGEST_S = 180.0  # of clicks
_GOAL = 2.0  # as while a release is filled


def restart(ground: Ground, store: StoreName) -> Iterator[Result]:
    """Freshness from a worker's start until it is settled, and after that."""
    rng = np.random.default_rng(ground.seed)
    before = clicks_at(rng, ground.size(_BACKLOG), [])
    steady = clicks_at(rng, int(_LONGEST_S * _RATE), before)
    with ground.deployment(store, session_timeout_s=_SESSION_S) as deployment:
        with serving(deployment):
            deployment.produce(before)
            deployment.wait_until_consumed()
        with serving(deployment) as worker, _clicking(deployment, steady):
            time.sleep(1.0)  # what gathered before it was ready is no matter of this
            first = worker.metrics()
            time.sleep(_SPAN_S)
            unsettled = worker.metrics()
            wait_until(lambda: _settled(deployment) == PARTITIONS, "all partitions to be settled")
            began = worker.metrics()
            time.sleep(_SPAN_S)
            end = worker.metrics()
        deployment.consume_all()
        audit = deployment.audit()
        if audit.differences:
            raise SystemExit(f"restart-{store}: {audit.report()}")
    rows = unsettled["mindstream_rows_written_total"] - first["mindstream_rows_written_total"]
    say(f"  {rows:,.0f} rows written in {_SPAN_S:g} s")
    yield at_most(
        f"restart-{store}-p99",
        1000 * freshness_p99_s((first, unsettled)),
        "ms",
        _GOAL,
        floor=1000 * freshness_p99_s((began, end)),
        users=len({click.user_id for click in before}),
        clicks_per_s=_RATE,
    )


@contextmanager
def _clicking(deployment: Deployment, clicks: list[Click]) -> Iterator[None]:
    """Meanwhile there are clicks at a steady rate."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(replay, deployment.settings, clicks, clicks_per_s=_RATE, stop=stop)
        try:
            yield
        finally:
            stop.set()
        told.result()  # or it would be the freshness of no clicks


def _settled(deployment: Deployment) -> int:
    """Partitions that the worker started last has settled."""
    logs = deployment.folder.glob("worker-*.log")
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    return newest.read_text().count("partition.settled")
