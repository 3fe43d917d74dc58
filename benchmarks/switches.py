"""Switches of release under look-ups and clicks: `python -m benchmarks.switches [--switches 20]`.

One release after the other is published, filled, proven and pointed at, rolled back and gone over
to again, while a process of its own looks users up and others click. Every answer is checked: users
who have interests must have some, all of an answer must be of one release, and none may fail.
Prints last a JSON line, and exits with 1 where an answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.ground import Ground, StoreName, serving
from benchmarks.results import machine, percentiles_ms, say
from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.kafka_client import producer
from encoder.release import Release, open_release
from encoder.settings import MilvusSettings
from lookup import Lookup
from mindstream.release_switch import prune, rollback, switch
from mindstream.worker_process import WorkerProcess
from tests.deployment import T0, Deployment
from tests.small_release import make_small_release
from training.publication import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

USERS: Final = 2_000
ITEMS: Final = 2_000
_WIDTH, _LENGTH, _INTERESTS = 64, 50, 4
_CLICKS_PER_S: Final = 100
_LOOKUPS_PER_S: Final = 500
_THREADS: Final = 4
_LOOKUPS_AT_ONCE: Final = 3  # of one user, of which each must fit the others
_CANDIDATES: Final = 20
_UNDISTURBED_S: Final = 30.0
_NEAR: Final = 0.15  # the mean cosine is 0 ± 0.07 for another release's vectors
_ALIKE: Final = 1e-3  # scores of one release agree better, those of two differ by far more
_FRESHNESS: Final = "mindstream_freshness_seconds"


def make_release(folder: Path, name: str, seed: int = 0) -> Release:
    """Untrained, but each in a space of its own."""
    return make_small_release(
        folder / name,
        items=ITEMS,
        width=_WIDTH,
        interests=_INTERESTS,
        window_length=_LENGTH,
        seed=seed,
        name=name,
    )


# The process that looks up ------------------------------------------------------------------


def look_up(uri: str, releases: Path, rate: float) -> None:
    """Look users up at a rate until standard input ends; then say what came of it."""
    counts: Counter[str] = Counter()
    lock, over = threading.Lock(), threading.Event()
    tables: dict[str, tuple[dict[str, int], NDArray[np.float32]]] = {}
    seconds: list[float] = []

    def table(name: str) -> tuple[dict[str, int], NDArray[np.float32]]:
        if name not in tables:
            release = open_release(releases / name)
            rows = {item: row for row, item in enumerate(release.item_ids, start=1)}
            tables[name] = rows, release.items
        return tables[name]

    def run(number: int) -> None:
        rng = np.random.default_rng(number)
        following = time.monotonic()
        with Lookup(MilvusSettings(uri=uri), items_in_memory=10 * ITEMS) as client:
            while not over.is_set():
                pause_s = _LOOKUPS_AT_ONCE * _THREADS / rate
                following = max(following + pause_s, time.monotonic() - 1.0)
                over.wait(max(0.0, following - time.monotonic()))
                began = time.perf_counter()
                try:
                    kind = one(client, f"user-{rng.integers(USERS)}", table)
                except Exception as exc:
                    kind = "failed"
                    say(f"  failed: {exc!r}")
                with lock:
                    counts["lookups"] += _LOOKUPS_AT_ONCE
                    counts[kind] += 1
                    seconds.append((time.perf_counter() - began) / _LOOKUPS_AT_ONCE)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    kinds = {kind: counts[kind] for kind in ("lookups", "empty", "mixed", "failed")}
    sys.stdout.write(json.dumps({**kinds, **percentiles_ms(seconds)}) + "\n")


def one(client: Lookup, user_id: str, table: object) -> str:
    """A user's interests and the items nearest to them: "good", "empty" or "mixed"."""
    found = client.interests(user_id)
    if not found.interests:
        return "empty"
    rows, items = table(found.release)  # type: ignore[operator]
    answer = client.candidates(user_id, limit=_CANDIDATES)
    if not answer.items:
        return "empty"
    # An interest is made of clicks: in the space of its release it lies near one of them.
    near = [float(one.vector @ items[rows[one.exemplar]]) for one in found.interests]
    if np.mean(near) < _NEAR:
        return "mixed"
    if answer.release == found.release:
        vectors = np.stack([interest.vector for interest in found.interests])
        best = (vectors @ items.T).max(axis=0)
        # The user may have clicked in between; most candidates stay what they are.
        off = [abs(hit.score - float(best[rows[hit.id]])) > _ALIKE for hit in answer.items]
        again = client.interests(user_id)
        moved = again.release != found.release or again.interests[0].updated_at != (
            found.interests[0].updated_at
        )
        if any(off) and not moved:
            return "mixed"
    return "good"


# The fleet ----------------------------------------------------------------------------------


@contextmanager
def clicking(deployment: Deployment) -> Iterator[None]:
    """Clicks at a steady rate."""
    over = threading.Event()
    rng = np.random.default_rng(1)

    def run() -> None:
        client = producer(deployment.settings.kafka, linger_ms=2)
        number = 0
        while not over.wait(1 / _CLICKS_PER_S):
            number += 1
            click = Click(
                f"user-{rng.integers(USERS)}", f"item-{rng.integers(ITEMS) + 1}", T0 + 10_000_000
            )
            key, value = click._replace(timestamp_ms=click.timestamp_ms + number).to_record()
            client.send(deployment.settings.kafka.clicks_topic, key=key, value=value)
        client.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def first_clicks() -> list[Click]:
    """So that every user has interests before the first look-up."""
    rng = np.random.default_rng(0)
    return [
        Click(f"user-{user}", f"item-{item + 1}", T0 + 1000 * place)
        for user in range(USERS)
        for place, item in enumerate(rng.integers(ITEMS, size=12).tolist())
    ]


def freshness_p99_s(before: dict[str, float], after: dict[str, float]) -> float:
    """Of the clicks between two readings of a worker's histogram, within its buckets linearly."""
    buckets = sorted(
        (float(name.rpartition("/")[2]), value - before.get(name, 0.0))
        for name, value in after.items()
        if name.startswith(f"{_FRESHNESS}_bucket/")
    )
    wanted = 0.99 * buckets[-1][1]
    lower, under = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - under) / max(1e-9, count - under)
        lower, under = bound, count
    return lower


def run_switches(ground: Ground, store: StoreName, switches: int) -> dict[str, object]:
    """All of it; what came of it."""
    with ExitStack() as stack:
        deployment = stack.enter_context(ground.deployment(store, release=make_release))
        settings = deployment.settings
        worker: WorkerProcess = stack.enter_context(serving(deployment))
        deployment.produce(first_clicks())
        deployment.wait_until_consumed()
        index = InterestIndex(settings.milvus)
        stack.callback(index.close)
        command = [sys.executable, "-m", "benchmarks.switches", "--look-up", settings.milvus.uri]
        command += ["--releases", settings.releases.url]
        readers = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(readers.kill)
        with clicking(deployment):
            time.sleep(5.0)
            quiet = worker.metrics()
            time.sleep(_UNDISTURBED_S)
            busy = worker.metrics()
            began = time.monotonic()
            rollbacks_ms, filled_s = [], []
            for number in range(1, switches + 1):
                name = f"{deployment.release.name}_{number}"
                release = make_release(deployment.folder, name, seed=number % 4)
                publish(release, settings, index)
                started = time.monotonic()
                switch(settings, index, name, sample=200)
                filled_s.append(time.monotonic() - started)
                started = time.monotonic()
                rollback(settings, index)
                rollbacks_ms.append(1000 * (time.monotonic() - started))
                switch(settings, index, name, sample=200)  # and forth again
                # What was left in the switch before this one, as after a grace time.
                prune(settings, index, grace_s=0.75 * filled_s[-1])
                say(f"  {number} of {switches}: {filled_s[-1]:.1f} s from announced to in use")
            switched_s = time.monotonic() - began
            end = worker.metrics()
        told, _ = readers.communicate()
        answers = json.loads(told.splitlines()[-1])
        prune(settings, index, grace_s=0)
        deployment.release = release
        deployment.wait_until_consumed()
        audit = deployment.audit()
        index.drop_release(release.name)
    before, during = freshness_p99_s(quiet, busy), freshness_p99_s(busy, end)
    return {
        "switches": switches,
        **{kind: answers[kind] for kind in ("lookups", "empty", "mixed", "failed")},
        "lookups_per_s": round(answers["lookups"] / (switched_s + _UNDISTURBED_S + 5.0)),
        "lookup_p99_ms": answers["p99_ms"],
        "rollback_ms": round(max(rollbacks_ms)),
        "live_p99_ratio": round(during / before, 2),
        "live_p99_ms": round(1000 * during),
        "undisturbed_p99_ms": round(1000 * before),
        "switch_s": round(float(np.median(filled_s)), 1),
        "differences": audit.differences,
        "users": USERS,
        "store": store,
        "machine": machine(),
    }


def main() -> int:
    """Run it, or be the process that looks up."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.switches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--switches", type=int, default=20, help="how many")
    parser.add_argument("--store", choices=("lite", "server"), default="lite")
    parser.add_argument("--look-up", help=argparse.SUPPRESS)
    parser.add_argument("--releases", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look_up:
        look_up(options.look_up, options.releases, _LOOKUPS_PER_S)
        return 0
    with ExitStack() as stack:
        found = run_switches(Ground(stack), options.store, options.switches)
    say(json.dumps(found))
    wrong = sum(int(str(found[kind])) for kind in ("empty", "mixed", "failed", "differences"))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
