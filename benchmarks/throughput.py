"""How many users a worker brings up to date per second, against what Milvus alone takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ground import Ground, StoreName, Traffic, serving
from benchmarks.results import Result, at_least, say
from benchmarks.write_floor import OURS, alone, patient, rows_of_users
from lookup import Lookup
from mindstream.group import committed_offsets
from mindstream.worker_process import WorkerProcess
from tests.deployment import Deployment

CLICKS, USERS = 2_000_000, 100_000
_GOAL = 0.8
_POLL_S = 0.1
_STALLED_S = 120.0
_STEPS = ("merge", "encode", "write", "commit")


@dataclass(frozen=True)
class Applied:
    """How fast a backlog was applied, from its first batches on until its rows could be read.

    Attributes:
        rows: written in that time.
        behind_s: how long it took to read rows, strongly, once all were acknowledged.
        users_per_batch: changed windows.
        step_share: part of the time that each step was under way.
        cpu_us_per_click: processor time of the workers and of each server.
        cpu_share: part of the machine's processor time that was used, by whomever.
    """

    rows: int
    behind_s: float
    clicks_per_s: float
    users_per_s: float
    rows_per_s: float
    users_per_batch: int
    step_share: dict[str, float]
    cpu_us_per_click: dict[str, float]
    cpu_share: float


def throughput(ground: Ground, store: StoreName, *, apart: bool = False) -> Iterator[Result]:
    """One worker and a backlog; with `apart`, half of the cores are the store's alone."""
    name = f"throughput-{store}{'-apart' if apart else ''}"
    traffic = Traffic(ground.size(CLICKS), ground.size(USERS), ground.seed)
    with (
        ground.apart(store) if apart else nullcontext(),
        ground.deployment(store) as deployment,
    ):
        say(f"  producing {len(traffic):,} clicks")
        traffic.produce(deployment)
        with serving(deployment) as worker:
            applied = apply_backlog(deployment, [worker], len(traffic), ground.servers)
        say("  comparing with a plain fold")
        audit = deployment.audit()
        if audit.differences or audit.clicks != len(traffic):
            raise SystemExit(f"{name}: {audit.report()}")
        say(f"    {applied.clicks_per_s:,.0f} clicks/s, {applied.users_per_s:,.0f} users/s")
        rows_per_user = applied.rows_per_s / applied.users_per_s
        say("  writing as many rows to Milvus alone")
        floors = alone(
            deployment.settings.milvus,
            rows_of_users(ground.size(USERS), max(1, round(rows_per_user))),
            users_at_once=applied.users_per_batch,
            rows_in_all=applied.rows,
        )
    supported = max(rate for way, rate in floors.items() if way != OURS)
    yield at_least(
        name,
        applied.users_per_s,
        "users/s",
        _GOAL,
        floor=supported / rows_per_user,
        clicks_per_s=round(applied.clicks_per_s),
        rows=applied.rows,
        behind_s=applied.behind_s,
        rows_per_s=round(applied.rows_per_s),
        rows_per_user=round(rows_per_user, 2),
        users_per_batch=applied.users_per_batch,
        step_share=applied.step_share,
        cpu_us_per_click=applied.cpu_us_per_click,
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
                applied = apply_backlog(deployment, workers, len(traffic), ground.servers)
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
                "cpu_us_per_click": applied.cpu_us_per_click,
                "cpu_share": applied.cpu_share,
            },
        )
        alone_per_s = alone_per_s or applied.clicks_per_s


def apply_backlog(
    deployment: Deployment,
    workers: list[WorkerProcess],
    clicks: int,
    servers: Mapping[str, int] | None = None,
    *,
    from_the_start: bool = False,
) -> Applied:
    """Let workers come to the end of the topic.

    The start until a tenth is done does not count, unless half of it or more is by then. The next
    batch is on its way by then: where there are few, time them `from_the_start`.

    Args:
        deployment: whose topic it is.
        workers: that are serving.
        clicks: how many the topic has.
        servers: name → process id, of those whose processor time is of interest.
        from_the_start: count everything from now on.
    """

    def seen() -> dict[str, float]:
        summed: dict[str, float] = {}
        for worker in workers:
            worker.check()
            for name, value in worker.metrics().items():
                summed[name] = summed.get(name, 0.0) + value
        return summed

    first: dict[str, float] = {}
    busy, capacity = _cpu()
    used = used_s(servers or {})
    began = progressed = time.perf_counter()
    before = -1.0
    while True:
        now, metrics = time.perf_counter(), seen()
        done = metrics.get("mindstream_clicks_total", 0.0)
        if not from_the_start and not first and clicks / 10 <= done < clicks / 2:
            first, began = metrics, now
            busy, capacity = _cpu()
            used = used_s(servers or {})
        if done >= clicks:
            break
        if done > before:
            before, progressed = done, now
        elif now - progressed > _STALLED_S:
            raise SystemExit(f"stalled at {done:,.0f} of {clicks:,} clicks")
        time.sleep(_POLL_S)
    written = time.perf_counter()
    _read_strongly(deployment)
    readable = time.perf_counter()
    seconds = readable - began
    gained = {name: value - first.get(name, 0.0) for name, value in metrics.items()}
    batches = max(gained.get("mindstream_batch_clicks_count", 0.0), 1.0)
    committed = sum(committed_offsets(deployment.settings, deployment.partitions).values())
    if committed < clicks:
        raise SystemExit(f"{committed:,} of {clicks:,} clicks are committed")
    steps = {step: gained.get(f"mindstream_step_seconds_sum/{step}", 0.0) for step in _STEPS}
    used = {name: value - used[name] for name, value in used_s(servers or {}).items()}
    used["worker"] = gained["process_cpu_seconds_total"]
    return Applied(
        rows=int(gained["mindstream_rows_written_total"]),
        behind_s=round(readable - written, 2),
        clicks_per_s=gained["mindstream_clicks_total"] / seconds,
        users_per_s=gained["mindstream_users_total"] / seconds,
        rows_per_s=gained["mindstream_rows_written_total"] / seconds,
        users_per_batch=round(gained["mindstream_users_total"] / batches),
        step_share={step: round(value / seconds, 2) for step, value in steps.items()},
        cpu_us_per_click={
            name: round(1e6 * value / gained["mindstream_clicks_total"], 1)
            for name, value in used.items()
        },
        cpu_share=round((_cpu()[0] - busy) / (_cpu()[1] - capacity), 2),
    )


def _read_strongly(deployment: Deployment) -> None:
    """Wait until the store has done all that it acknowledged: Milvus indexes rows afterwards."""
    with Lookup(patient(deployment.settings.milvus)) as lookup:
        if not lookup.interests("user-00000000", consistency="Strong").interests:
            raise SystemExit("the user with most of the clicks has no interests")


def used_s(servers: Mapping[str, int]) -> dict[str, float]:
    """Processor time that processes have used, in seconds."""
    used = {}
    for name, pid in servers.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def _cpu() -> tuple[float, float]:
    """Time that the machine's cores were busy, and all their time, in ticks."""
    numbers = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = numbers[3] + numbers[4]
    return sum(numbers) - idle, sum(numbers)
