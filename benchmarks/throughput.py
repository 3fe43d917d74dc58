"""How many users a worker brings up to date per second, against what Milvus alone takes."""

from __future__ import annotations

import itertools
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pymilvus import Collection, MilvusClient, connections

from benchmarks.columns import columns, upsert_columns
from benchmarks.ground import WIDTH, Ground, StoreName, Traffic, serving
from benchmarks.results import Result, at_least, say
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from encoder.settings import MilvusSettings
from mindstream.group import committed_offsets
from mindstream.worker_process import WorkerProcess
from tests.deployment import Deployment

CLICKS, USERS = 2_000_000, 100_000
_GOAL = 0.8
_FLOOR_S = 12.0
_POLL_S = 0.1
_STALLED_S = 120.0
_STEPS = ("merge", "encode", "write", "commit")


@dataclass(frozen=True)
class Applied:
    """How fast a backlog was applied, from its first batches on.

    Attributes:
        users_per_batch: changed windows.
        step_share: part of the time that each step was under way.
        worker_us_per_click: processor time of the workers.
        cpu_share: part of the machine's processor time that was used, by whomever.
    """

    clicks_per_s: float
    users_per_s: float
    rows_per_s: float
    users_per_batch: int
    step_share: dict[str, float]
    worker_us_per_click: float
    cpu_share: float


def throughput(ground: Ground, store: StoreName) -> Iterator[Result]:
    """One worker and a backlog."""
    traffic = Traffic(ground.size(CLICKS), ground.size(USERS), ground.seed)
    with ground.deployment(store) as deployment:
        say(f"  producing {len(traffic):,} clicks")
        traffic.produce(deployment)
        with serving(deployment) as worker:
            applied = apply_backlog(deployment, [worker], len(traffic))
        say("  comparing with a plain fold")
        audit = deployment.audit()
        if audit.differences or audit.clicks != len(traffic):
            raise SystemExit(f"throughput-{store}: {audit.report()}")
        rows_per_user = applied.rows_per_s / applied.users_per_s
        say("  writing to Milvus alone")
        floors = alone(deployment, applied.users_per_batch, rows_per_user, ground.size(USERS))
    supported = max(floors["dictionaries"], floors["columns"])
    yield at_least(
        f"throughput-{store}",
        applied.users_per_s,
        "users/s",
        _GOAL,
        floor=supported / rows_per_user,
        clicks_per_s=round(applied.clicks_per_s),
        rows_per_s=round(applied.rows_per_s),
        rows_per_user=round(rows_per_user, 2),
        users_per_batch=applied.users_per_batch,
        step_share=applied.step_share,
        worker_us_per_click=applied.worker_us_per_click,
        cpu_share=applied.cpu_share,
        alone_rows_per_s={way: round(rate) for way, rate in floors.items()},
        clicks=len(traffic),
    )


def scaling(ground: Ground) -> Iterator[Result]:
    """One worker, then two, on the server."""
    traffic = Traffic(ground.size(CLICKS // 2), ground.size(USERS), ground.seed)
    alone_per_s = None
    for count in (1, 2):
        with ground.deployment("server") as deployment:
            traffic.produce(deployment)
            with ExitStack() as stack:
                workers = [stack.enter_context(serving(deployment)) for _ in range(count)]
                applied = apply_backlog(deployment, workers, len(traffic))
            audit = deployment.audit()
            if audit.differences:
                raise SystemExit(f"scaling: {audit.report()}")
        yield Result(
            f"scaling-{count}",
            applied.clicks_per_s,
            "clicks/s",
            floor=alone_per_s,
            details={
                "users_per_s": round(applied.users_per_s),
                "step_share": applied.step_share,
                "worker_us_per_click": applied.worker_us_per_click,
                "cpu_share": applied.cpu_share,
            },
        )
        alone_per_s = alone_per_s or applied.clicks_per_s


def apply_backlog(deployment: Deployment, workers: list[WorkerProcess], clicks: int) -> Applied:
    """Let workers come to the end of the topic; the start until a tenth is done does not count."""

    def seen() -> dict[str, float]:
        summed: dict[str, float] = {}
        for worker in workers:
            worker.check()
            for name, value in worker.metrics().items():
                summed[name] = summed.get(name, 0.0) + value
        return summed

    first: dict[str, float] = {}
    busy, capacity = _cpu()
    began = progressed = time.perf_counter()
    before = -1.0
    while True:
        now, metrics = time.perf_counter(), seen()
        done = metrics.get("mindstream_clicks_total", 0.0)
        if not first and done >= clicks / 10:
            first, began = metrics, now
            busy, capacity = _cpu()
        if done >= clicks:
            break
        if done > before:
            before, progressed = done, now
        elif now - progressed > _STALLED_S:
            raise SystemExit(f"stalled at {done:,.0f} of {clicks:,} clicks")
        time.sleep(_POLL_S)
    seconds = now - began
    gained = {name: value - first.get(name, 0.0) for name, value in metrics.items()}
    batches = max(gained.get("mindstream_batch_clicks_count", 0.0), 1.0)
    committed = sum(committed_offsets(deployment.settings, deployment.partitions).values())
    if committed < clicks:
        raise SystemExit(f"{committed:,} of {clicks:,} clicks are committed")
    steps = {step: gained.get(f"mindstream_step_seconds_sum/{step}", 0.0) for step in _STEPS}
    return Applied(
        clicks_per_s=gained["mindstream_clicks_total"] / seconds,
        users_per_s=gained["mindstream_users_total"] / seconds,
        rows_per_s=gained["mindstream_rows_written_total"] / seconds,
        users_per_batch=round(gained["mindstream_users_total"] / batches),
        step_share={step: round(value / seconds, 2) for step, value in steps.items()},
        worker_us_per_click=round(
            1e6 * gained["process_cpu_seconds_total"] / gained["mindstream_clicks_total"], 1
        ),
        cpu_share=round((_cpu()[0] - busy) / (_cpu()[1] - capacity), 2),
    )


def _cpu() -> tuple[float, float]:
    """Time that the machine's cores were busy, and all their time, in ticks."""
    numbers = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = numbers[3] + numbers[4]
    return sum(numbers) - idle, sum(numbers)


def alone(
    deployment: Deployment, users_per_batch: int, rows_per_user: float, users: int
) -> dict[str, float]:
    """Rows per second that the store takes from a process that does nothing else, by each call.

    Pymilvus's own calls, for dictionaries and for columns, are the floor; ours is beside them.

    Rows are written over and over, in batches as large as the worker's and, where that is better,
    four times as large.
    """
    settings = deployment.settings.milvus
    index = InterestIndex(settings)
    rows = rows_of_users(users, max(1, round(rows_per_user)))
    best: dict[str, float] = {}
    try:
        for way, write in _ways(settings, index):
            for factor in (1, 4):
                name = f"floor_{way}_{factor}"
                index.create_release(name, WIDTH)
                rate = _rate(write, name, rows, users_per_batch * factor)
                best[way] = max(rate, best.get(way, 0.0))
                say(f"    {way}, {users_per_batch * factor} users a call: {rate:,.0f} rows/s")
                index.drop_release(name)
    finally:
        index.close()
    return best


_Write = Callable[[str, InterestRows], None]


def _ways(settings: MilvusSettings, index: InterestIndex) -> Iterator[tuple[str, _Write]]:
    client = MilvusClient(settings.uri)
    warnings.filterwarnings("ignore", message=".*ORM-style")  # nothing else takes columns

    def as_dictionaries(release: str, rows: InterestRows) -> None:
        by_field = columns(rows)
        cells = zip(*by_field.values(), strict=True)
        data = [dict(zip(by_field, row, strict=True)) for row in cells]
        client.upsert(f"interests_{release}", data)

    connections.connect("bench", uri=settings.uri)
    opened: dict[str, Collection] = {}

    def as_columns(release: str, rows: InterestRows) -> None:
        if release not in opened:
            opened[release] = Collection(f"interests_{release}", using="bench")
        upsert_columns(opened[release], rows)

    def as_we_do(release: str, rows: InterestRows) -> None:
        index.write_interests(release, rows, [], budget_s=60.0)

    yield "dictionaries", as_dictionaries
    yield "columns", as_columns
    yield "mindstream", as_we_do
    connections.disconnect("bench")
    client.close()


def _rate(write: _Write, release: str, rows: list[InterestRows], users_per_batch: int) -> float:
    rng = random.Random(0)
    size = min(users_per_batch, len(rows))
    batches = itertools.cycle([joined_rows(rng.sample(rows, size)) for _ in range(8)])
    written, seconds, began = 0, 0.0, time.perf_counter()
    while seconds < _FLOOR_S:
        batch = next(batches)
        write(release, batch)
        written += len(batch)
        seconds = time.perf_counter() - began
    return written / seconds


def rows_of_users(users: int, per_user: int) -> list[InterestRows]:
    """The rows of each user, of random interests."""
    rng = np.random.default_rng(0)
    vectors: NDArray[np.float32] = rng.standard_normal((users, per_user, WIDTH), np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return [
        InterestRows(
            user_ids=[f"user-{user:08d}"] * per_user,
            slots=np.arange(per_user),
            weights=np.full(per_user, 1 / per_user, np.float32),
            exemplars=[f"item-{user}"] * per_user,
            updated_at=np.full(per_user, 1_700_000_000_000 + user),
            vectors=vectors[user],
        )
        for user in range(users)
    ]


def joined_rows(parts: list[InterestRows]) -> InterestRows:
    """Rows of several users as one batch."""
    return InterestRows(
        user_ids=[one for part in parts for one in part.user_ids],
        slots=np.concatenate([part.slots for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        exemplars=[one for part in parts for one in part.exemplars],
        updated_at=np.concatenate([part.updated_at for part in parts]),
        vectors=np.concatenate([part.vectors for part in parts]),
    )
