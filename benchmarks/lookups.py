"""User to candidates, through the client and over HTTP, alone and under full writing.

Both search the items in memory; `store` is the client that has the store search them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from http.client import HTTPConnection

import numpy as np

from benchmarks.ground import ITEMS, PARTITIONS, Ground, StoreName, Traffic, serving
from benchmarks.results import Result, at_most, percentiles_ms, say
from lookup import Lookup
from mindstream.group import committed_offsets
from tests.deployment import Deployment, wait_until
from tests.lookup_service import get, lookup_service

_USERS = 20_000
_CLICKS = 100_000
_BACKLOG = 8_000_000
_LOOKUPS = 1_000
_LONGEST_S = 30.0  # so that three kinds of look-ups end before the backlog does
_LIMIT = 50
_GOAL_MS = 15.0
_CHECKED = 20

_Candidates = Callable[[str], list[str]]


def lookups(ground: Ground, store: StoreName) -> Iterator[Result]:
    """50 candidates among 100,000 items."""
    traffic = Traffic(ground.size(_CLICKS), ground.size(_USERS), ground.seed)
    backlog = Traffic(ground.size(_BACKLOG), ground.size(_USERS), ground.seed + 1)
    rng = random.Random(ground.seed)
    known = [f"user-{user:08d}" for user in np.unique(traffic.user).tolist()]
    with ground.deployment(store) as deployment:
        traffic.produce(deployment)
        with serving(deployment):
            deployment.wait_until_consumed()
        milvus = deployment.settings.milvus
        with (
            Lookup(milvus) as by_store,
            Lookup(milvus, items_in_memory=ITEMS) as lookup,
            lookup_service(deployment.settings) as url,
        ):
            ways: dict[str, AbstractContextManager[_Candidates]] = {
                "store": nullcontext(partial(_through_client, by_store)),
                "client": nullcontext(partial(_through_client, lookup)),
                "http": _OverHttp(url),
            }
            began = time.perf_counter()
            wait_until(lambda: lookup.items_are_in_memory and _in_memory(url), "the items")
            say(f"  items in memory after {time.perf_counter() - began:.1f} s")
            recall = _recall(deployment, lookup, rng, known)

            def measured(condition: str) -> Iterator[Result]:
                for name, way in ways.items():
                    count = _LOOKUPS // 5 if name == "store" else _LOOKUPS  # it is much slower
                    with way as candidates:
                        seconds = _timed(
                            candidates, rng, known, ground.size(count), _LONGEST_S * ground.scale
                        )
                    found = percentiles_ms(seconds)
                    details = {"lookups": len(seconds), "items": ITEMS, **found}
                    title = f"lookup-{store}-{name}-{condition}"
                    if name == "store":
                        yield Result(title, found["p99_ms"], "ms (p99)", details=details)
                    else:
                        details["recall"] = round(recall, 3)
                        yield at_most(title, found["p99_ms"], "ms (p99)", _GOAL_MS, **details)

            yield from measured("alone")
            backlog.produce(deployment)
            with serving(deployment) as worker:
                yield from measured("writing")
                worker.check()
                done = sum(committed_offsets(deployment.settings, PARTITIONS).values())
                if done >= len(traffic) + len(backlog):
                    raise SystemExit(f"lookup-{store}: the backlog was at its end too early")


def _in_memory(url: str) -> bool:
    return "mindstream_lookup_items_in_memory 1.0" in get(url, "/metrics")[1]


def _through_client(lookup: Lookup, user_id: str) -> list[str]:
    return [hit.id for hit in lookup.candidates(user_id, limit=_LIMIT).items]


class _OverHttp:
    """Over one connection, which is kept within a `with`."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(url.removeprefix("http://"), timeout=20)

    def __enter__(self) -> _Candidates:
        return self._candidates

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _candidates(self, user_id: str) -> list[str]:
        self._connection.request("GET", f"/users/{user_id}/candidates?limit={_LIMIT}")
        answer = json.loads(self._connection.getresponse().read())
        return [hit["id"] for hit in answer["items"]]


def _timed(
    candidates: _Candidates, rng: random.Random, known: list[str], count: int, longest_s: float
) -> list[float]:
    """Seconds of each of so many look-ups, or of as many as there are within a time."""
    seconds: list[float] = []
    until = time.perf_counter() + longest_s
    while len(seconds) < count and time.perf_counter() < until:
        user_id = rng.choice(known)
        began = time.perf_counter()
        found = candidates(user_id)
        seconds.append(time.perf_counter() - began)
        if len(found) != _LIMIT:
            raise SystemExit(f"{user_id} has {len(found)} candidates, not {_LIMIT}")
    return seconds


def _recall(deployment: Deployment, lookup: Lookup, rng: random.Random, known: list[str]) -> float:
    """Of the nearest items by brute force."""
    items, shares = deployment.release.items[1:], []
    for user_id in rng.sample(known, min(_CHECKED, len(known))):
        interests = lookup.interests(user_id, consistency="Strong").interests
        scores = np.max([items @ interest.vector for interest in interests], axis=0)
        nearest = {f"item-{row + 1}" for row in np.argsort(-scores)[:_LIMIT].tolist()}
        found = set(_through_client(lookup, user_id))
        shares.append(len(nearest & found) / _LIMIT)
    return float(np.mean(shares))
