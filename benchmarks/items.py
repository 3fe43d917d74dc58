"""From an item's announcement to its being retrieved, and to clicks on it counting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.ground import ITEMS, WIDTH, Ground, StoreName, Traffic, make_release, serving
from benchmarks.results import Result, at_most, percentiles_ms, say
from encoder.click import Click
from encoder.item_topic import announce_items
from encoder.release import Release
from lookup import Lookup
from tests.deployment import T0, wait_until
from tests.small_items import field_vectors

_CLICKS, _USERS = 400_000, 20_000
_ROUNDS = 40
_POLL_S = 0.01
_GOAL_MS = 5_000.0
_GIVE_UP_S = 90.0
_WORDS = ("red", "blue", "cup")


def items(ground: Ground, store: StoreName) -> Iterator[Result]:
    """One item after another, each with a user who clicked it before, among users who did not."""
    traffic = Traffic(ground.size(_CLICKS), ground.size(_USERS), ground.seed)
    rounds = ground.size(_ROUNDS)
    with ground.deployment(store, _release) as deployment:
        traffic.produce(deployment)
        deployment.produce(Click(f"fan-{n}", f"new-{n}", T0) for n in range(rounds))
        release, kafka = deployment.release.name, deployment.settings.kafka
        with (
            serving(deployment) as worker,
            Lookup(deployment.settings.milvus, consistency="Strong") as asking,
            Lookup(deployment.settings.milvus, items_in_memory=2 * ITEMS) as holding,
        ):
            deployment.wait_until_consumed()
            deployment.wait_until_filled()
            wait_until(lambda: holding.items_are_in_memory, "the items")
            seconds: dict[str, list[float]] = {"store": [], "memory": [], "interests": []}
            for number in range(rounds):
                item = f"new-{number}"
                fields = {"title": " ".join(_WORDS[: 1 + number % 3]), "price": float(number)}
                began_at = time.perf_counter()
                announce_items(kafka, [(item, json.dumps(fields).encode())])
                left: dict[str, Callable[[], object]] = {
                    "store": partial(asking._index.item_vectors, release, [item], "Strong"),
                    "memory": partial(_in_memory, holding, release, item),
                    "interests": partial(_interests, asking, f"fan-{number}"),
                }
                _measure(left, seconds, began_at)
                worker.check()
            for name, measured in seconds.items():
                found = percentiles_ms(measured)
                yield at_most(
                    f"items-{store}-{name}-p50",
                    found["p50_ms"],
                    "ms",
                    _GOAL_MS,
                    samples=len(measured),
                    items=len(deployment.release.item_ids),
                    users=ground.size(_USERS),
                    **found,
                )
            wait_until(lambda: deployment.audit().differences == 0, "the same as a plain fold")
            say(f"  no difference from a plain fold, with {rounds} items announced")


def _release(folder: Path, name: str) -> Release:
    return make_release(folder, name, field_vectors(width=WIDTH))


def _in_memory(lookup: Lookup, release: str, item: str) -> bool:
    lookup.release()
    table = lookup._tables.get(release)
    return table is not None and item in table


def _interests(lookup: Lookup, user_id: str) -> object:
    return lookup.interests(user_id).interests


def _measure(
    left: dict[str, Callable[[], object]], seconds: dict[str, list[float]], began_at: float
) -> None:
    while left:
        for name in [name for name, there in left.items() if there()]:
            seconds[name].append(time.perf_counter() - began_at)
            del left[name]
        if time.perf_counter() - began_at > _GIVE_UP_S:
            raise SystemExit(f"items: {', '.join(left)} did not come")
        time.sleep(_POLL_S)
