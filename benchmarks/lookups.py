"""User to candidates, through the client, while nothing else happens and under full writing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.ground import ITEMS, Ground, StoreName, Traffic, serving
from benchmarks.results import Result, at_most, percentiles_ms, say
from lookup import Lookup
from mindstream.worker_process import WorkerProcess
from tests.deployment import Deployment

_USERS = 20_000
_CLICKS = 100_000
_LOOKUPS = 1_000
_LIMIT = 50
_GOAL_MS = 15.0
_CHECKED = 20


def lookups(ground: Ground, store: StoreName) -> Iterator[Result]:
    """50 candidates among 100,000 items."""
    traffic = Traffic(ground.size(_CLICKS), ground.size(_USERS), ground.seed)
    with ground.deployment(store) as deployment, serving(deployment) as worker:
        traffic.produce(deployment)
        deployment.wait_until_consumed()
        rng = random.Random(ground.seed)
        known = sorted(set(traffic.user.tolist()))
        with Lookup(deployment.settings.milvus) as lookup:
            recall = _recall(deployment, lookup, rng, known)
            say(f"  recall of the store's search: {recall:.3f}")
            for condition in ("alone", "while writing"):
                with _writing(deployment, worker, condition == "while writing", ground):
                    seconds = _timed(lookup, rng, known, ground.size(_LOOKUPS))
                found = percentiles_ms(seconds)
                yield at_most(
                    f"lookup-{store}-{condition.replace(' ', '-')}",
                    found["p99_ms"],
                    "ms (p99)",
                    _GOAL_MS,
                    lookups=len(seconds),
                    recall=round(recall, 3),
                    items=ITEMS,
                    **found,
                )
        worker.check()


def _timed(lookup: Lookup, rng: random.Random, known: list[int], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        user_id = f"user-{rng.choice(known):08d}"
        began = time.perf_counter()
        found = lookup.candidates(user_id, limit=_LIMIT)
        seconds.append(time.perf_counter() - began)
        if len(found.items) != _LIMIT:
            raise SystemExit(f"{user_id} has {len(found.items)} candidates, not {_LIMIT}")
    return seconds


def _recall(deployment: Deployment, lookup: Lookup, rng: random.Random, known: list[int]) -> float:
    """Of the nearest items by brute force."""
    items, shares = deployment.release.items[1:], []
    for user in rng.sample(known, min(_CHECKED, len(known))):
        user_id = f"user-{user:08d}"
        interests = lookup.interests(user_id, consistency="Strong").interests
        scores = np.max([items @ interest.vector for interest in interests], axis=0)
        nearest = {f"item-{row + 1}" for row in np.argsort(-scores)[:_LIMIT].tolist()}
        found = {hit.id for hit in lookup.candidates(user_id, limit=_LIMIT).items}
        shares.append(len(nearest & found) / _LIMIT)
    return float(np.mean(shares))


@contextmanager
def _writing(
    deployment: Deployment, worker: WorkerProcess, wanted: bool, ground: Ground
) -> Iterator[None]:
    """A backlog that lasts while the block runs, where wanted."""
    over = threading.Event()

    def produce() -> None:
        seed = ground.seed
        while not over.is_set():
            seed += 1
            Traffic(20_000, ground.size(_USERS), seed).produce(deployment)

    thread = threading.Thread(target=produce)
    if wanted:
        thread.start()
        time.sleep(2.0)
    try:
        yield
    finally:
        over.set()
        if wanted:
            thread.join()
