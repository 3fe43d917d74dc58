"""From a click's production to its user's rows being readable by key, at steady rates."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import numpy as np
from kafka import TopicPartition

from benchmarks.ground import ITEMS, WIDTH, Ground, StoreName, serving
from benchmarks.results import Result, at_most, percentiles_ms, say
from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from encoder.kafka_client import admin_client, producer, reader
from lookup import Lookup
from mindstream.replay import FreshnessProbe, replay
from tests.deployment import Deployment

RATES = (100, 500, 2000)
_SECONDS = 30
_USERS = 20_000
_HOPS = 400
_GOAL_P50, _GOAL_P99 = 2.0, 5.0


def freshness(ground: Ground, store: StoreName) -> Iterator[Result]:
    """Each rate in turn, and a bare hop before them."""
    rng = np.random.default_rng(ground.seed)
    with ground.deployment(store) as deployment, serving(deployment) as worker:
        bare = percentiles_ms(_bare_hops(deployment, ground.size(_HOPS)))
        say(f"  a bare hop: {bare}")
        history: list[Click] = []
        for rate in RATES:
            clicks = clicks_at(rng, ground.size(rate * _SECONDS), history)
            measured = followed(deployment, history, clicks, rate)
            worker.check()
            history += clicks
            found = percentiles_ms(measured)
            for quantile, goal in (("p50_ms", _GOAL_P50), ("p99_ms", _GOAL_P99)):
                yield at_most(
                    f"freshness-{store}-{rate}-{quantile[:3]}",
                    found[quantile],
                    "ms",
                    goal,
                    floor=bare[quantile],
                    samples=len(measured),
                    **found,
                )
        deployment.wait_until_consumed()
        audit = deployment.audit()
        if audit.differences:
            raise SystemExit(f"freshness-{store}: {audit.report()}")


def clicks_at(rng: np.random.Generator, count: int, before: list[Click]) -> list[Click]:
    """Clicks of a steady stream, after others."""
    now = before[-1].timestamp_ms if before else 1_700_000_000_000
    users = (_USERS * rng.random(count) ** 2).astype(int).tolist()
    items = (ITEMS * rng.random(count) ** 3).astype(int).tolist()
    return [
        Click(f"user-{user:08d}", f"item-{item + 1}", now + number)
        for number, (user, item) in enumerate(zip(users, items, strict=True), start=1)
    ]


def followed(
    deployment: Deployment, history: list[Click], clicks: list[Click], rate: int
) -> list[float]:
    """Seconds until each of some clicks was readable, while all of them are produced at a rate."""
    with Lookup(deployment.settings.milvus, consistency="Strong") as lookup:
        probe = FreshnessProbe(lookup, deployment.release.row_of)
        probe.start(history)
        replay(deployment.settings, clicks, clicks_per_s=rate, produced=probe.produced)
        deployment.wait_until_consumed()
        probe.finish()
    return probe.seconds


def _bare_hops(deployment: Deployment, count: int) -> list[float]:
    """Produce, consume, upsert one user's rows, and get them by key, one after the other."""
    settings = deployment.settings
    topic = f"bare.{uuid.uuid4().hex[:8]}"
    release = f"bare_{topic[-8:]}"
    with admin_client(settings.kafka) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    index = InterestIndex(settings.milvus)
    index.create_release(release, WIDTH)
    seconds: list[float] = []
    client = producer(settings.kafka, linger_ms=0)
    try:
        with reader(settings.kafka) as consumer:
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            consumer.poll(timeout_ms=1000)
            for number in range(count + 20):
                began = time.perf_counter()
                client.send(topic, key=b"user", value=b"x" * 80)
                while not consumer.poll(timeout_ms=1000):
                    pass
                until_readable(index, release, number)
                seconds.append(time.perf_counter() - began)
    finally:
        client.close()
        index.drop_release(release)
        index.close()
    return seconds[20:]  # without what starting costs


def until_readable(index: InterestIndex, release: str, number: int) -> None:
    """Write one user's rows, which have the number, and read strongly until they are there."""
    rows = _one_user(number)
    index.write_interests(release, rows, [], budget_s=60.0)
    while True:
        found = index.interests(release, ["user"], len(rows), "Strong")
        if found and found["user"][0].updated_at == number:
            return


def _one_user(number: int) -> InterestRows:
    return InterestRows(
        user_ids=["user"] * 3,
        slots=np.arange(3),
        weights=np.full(3, 1 / 3, np.float32),
        exemplars=["item-1"] * 3,
        updated_at=np.full(3, number),
        vectors=np.full((3, WIDTH), WIDTH**-0.5, np.float32),
    )
