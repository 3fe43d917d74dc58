"""The same job with Quix Streams, in the same run: clicks per second, and freshness."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.freshness import clicks_at, followed
from benchmarks.ground import INTERESTS, PARTITIONS, Ground, StoreName, Traffic, serving
from benchmarks.results import Result, at_least, at_most, percentiles_ms, say
from benchmarks.throughput import apply_backlog
from deploy.guarded_process import GuardedProcess, tail
from encoder.interest_index import InterestIndex
from mindstream.group import committed_offsets
from tests.deployment import Deployment

CLICKS, USERS = 200_000, 20_000
_RATE, _SECONDS = 100, 30
_ENVIRONMENT = Path(".cache/benchmark-quix")
_POLL_S = 0.1
_STALLED_S = 180.0
_FASTER, _FRESHER = 5.0, 0.1


def alternative(ground: Ground, store: StoreName) -> Iterator[Result]:
    """The same clicks through either, one after the other."""
    python = _environment()
    traffic = Traffic(ground.size(CLICKS), ground.size(USERS), ground.seed)
    with ground.deployment(store) as deployment:
        traffic.produce(deployment)
        with serving(deployment) as worker:
            applied = apply_backlog(deployment, [worker], len(traffic), from_the_start=True)
            ours = applied.clicks_per_s
            fresh = _freshness(deployment, traffic, ground)
        audit = deployment.audit()
        if audit.differences:
            raise SystemExit(f"alternative-{store}: {audit.report()}")
    with ground.deployment(store) as deployment:
        traffic.produce(deployment)
        with _quix(deployment, python) as job:
            theirs = _rate(deployment, job, len(traffic))
            index = InterestIndex(deployment.settings.milvus)
            index.use_release(deployment.release.name, INTERESTS)
            index.close()
            stale = _freshness(deployment, traffic, ground)
        audit = deployment.audit()
        say(f"  Quix Streams, compared with a plain fold: {audit.wrong_rows} wrong rows")
    yield at_least(f"alternative-{store}-clicks", ours, "clicks/s", _FASTER, floor=theirs)
    for quantile in ("p50_ms", "p99_ms"):
        yield at_most(
            f"alternative-{store}-freshness-{quantile[:3]}",
            fresh[quantile],
            "ms",
            _FRESHER,
            floor=stale[quantile],
        )


def _environment() -> Path:
    """Python of an environment with Quix Streams, which wants other versions than ours."""
    uv = shutil.which("uv") or ".tools/bin/uv"  # as the Makefile has it
    subprocess.run(
        [uv, "sync", "--locked", "--quiet", "--no-dev", "--group", "bench"],
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(_ENVIRONMENT)},
        check=True,
    )
    return _ENVIRONMENT / "bin/python"


@contextmanager
def _quix(deployment: Deployment, python: Path) -> Iterator[GuardedProcess]:
    settings = deployment.settings
    job = GuardedProcess(
        [
            str(python),
            "-m",
            "benchmarks.quix_job",
            f"--broker={settings.kafka.bootstrap_servers}",
            f"--topic={settings.kafka.clicks_topic}",
            f"--group={settings.worker.group_id}",
            f"--milvus={settings.milvus.uri}",
            f"--release={settings.releases.url}/{deployment.release.name}",
            f"--folder={deployment.folder}",
        ],
        log=deployment.folder / "quix.log",
        stop_budget_s=20.0,
        environment=dict(os.environ),
    )
    try:
        yield job
    finally:
        job.stop()


def _rate(deployment: Deployment, job: GuardedProcess, clicks: int) -> float:
    """Clicks committed per second, from a tenth on."""
    began, first, before, progressed = 0.0, 0, -1, time.perf_counter()
    while True:
        done = sum(committed_offsets(deployment.settings, PARTITIONS).values())
        now = time.perf_counter()
        if not began and done >= clicks / 10:
            began, first = now, done
        if done >= clicks:
            return (done - first) / (now - began)
        if done > before:
            before, progressed = done, now
        if now - progressed > _STALLED_S or not job.running:
            raise SystemExit(
                f"Quix Streams stopped at {done:,} of {clicks:,} clicks:\n"
                + tail(deployment.folder / "quix.log")
            )
        time.sleep(_POLL_S)


def _freshness(deployment: Deployment, traffic: Traffic, ground: Ground) -> dict[str, float]:
    rng = np.random.default_rng(ground.seed)
    history = traffic.clicks()
    clicks = clicks_at(rng, ground.size(_RATE * _SECONDS), history)
    return percentiles_ms(followed(deployment, history, clicks, _RATE))
