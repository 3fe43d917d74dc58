"""Switches of release under look-ups and clicks: `python -m benchmarks.switches [--switches 20]`.

One release after the other is published, filled, proven and pointed at, rolled back and gone over
to again, while a process of its own looks users up, as a service would, and another one clicks.
Every answer is checked: users who have interests must have some, all of an answer must be of one
release, and none may fail. Prints last a JSON line, and exits with 1 where an answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.ground import Ground, StoreName, serving
from benchmarks.results import machine, percentiles_ms, say
from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.kafka_client import producer
from encoder.release import Release, open_release
from encoder.settings import Settings, load_settings
from lookup import Lookup
from mindstream.environment import child_environment
from mindstream.release_switch import prune, rollback, switch
from mindstream.worker_process import WorkerProcess
from tests.deployment import T0
from tests.small_release import make_small_release
from training.publication import publish

USERS: Final = 2_000
ITEMS: Final = 2_000
_WIDTH, _LENGTH, _INTERESTS = 64, 50, 4
_CLICKS_PER_S: Final = 100
_LOOKUPS_PER_S: Final = 500
_THREADS: Final = 4
_LOOKUPS_AT_ONCE: Final = 3  # of one user, of which each must fit the others
_CANDIDATES: Final = 20
_SETTLING_S: Final = 15.0  # of 2,000 users
_UNDISTURBED_S: Final = 60.0
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


# Processes of their own, until their standard input ends ------------------------------------


def look_up(settings: Settings) -> None:
    """Look users up at a steady rate; then say what came of it."""
    counts: Counter[str] = Counter()
    lock, over = threading.Lock(), threading.Event()
    tables: dict[str, tuple[dict[str, int], NDArray[np.float32]]] = {}
    seconds: list[float] = []

    def table(name: str) -> tuple[dict[str, int], NDArray[np.float32]]:
        if name not in tables:
            release = open_release(Path(settings.releases.url) / name)
            rows = {item: row for row, item in enumerate(release.item_ids, start=1)}
            tables[name] = rows, release.items
        return tables[name]

    def run(client: Lookup, number: int) -> None:
        rng = np.random.default_rng(number)
        following = time.monotonic()
        while not over.is_set():
            pause_s = _LOOKUPS_AT_ONCE * _THREADS / _LOOKUPS_PER_S
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

    began = time.monotonic()
    with Lookup(settings.milvus, items_in_memory=10 * ITEMS) as client:
        threads = [threading.Thread(target=run, args=(client, n)) for n in range(_THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        over.set()
        for thread in threads:
            thread.join()
    kinds = {kind: counts[kind] for kind in ("lookups", "empty", "mixed", "failed")}
    rate = {"per_s": counts["lookups"] / (time.monotonic() - began)}
    sys.stdout.write(json.dumps({**kinds, **rate, **percentiles_ms(seconds)}) + "\n")


def click(settings: Settings) -> None:
    """Click at a steady rate."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait).start()
    rng = np.random.default_rng(1)
    client = producer(settings.kafka, linger_ms=2)
    number = 0
    while not over.wait(1 / _CLICKS_PER_S):
        number += 1
        item = f"item-{rng.integers(ITEMS) + 1}"
        made = Click(f"user-{rng.integers(USERS)}", item, T0 + 10_000_000 + number)
        key, value = made.to_record()
        client.send(settings.kafka.clicks_topic, key=key, value=value)
    client.close()


_ROLES: Final = {"look-up": look_up, "click": click}


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


def started(stack: ExitStack, role: str, settings: Settings) -> subprocess.Popen[str]:
    """This module in another role."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.switches", "--role", role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(settings),
    )
    stack.callback(process.kill)
    return process


def first_clicks() -> list[Click]:
    """So that every user has interests before the first look-up."""
    rng = np.random.default_rng(0)
    return [
        Click(f"user-{user}", f"item-{item + 1}", T0 + 1000 * place)
        for user in range(USERS)
        for place, item in enumerate(rng.integers(ITEMS, size=12).tolist())
    ]


def freshness_p99_s(*spans: tuple[dict[str, float], dict[str, float]]) -> float:
    """Of the clicks between pairs of readings of a worker's histogram, within its buckets linearly.

    A pair is a span of time; those of all spans count together.
    """
    counts: dict[float, float] = defaultdict(float)
    for before, after in spans:
        for name, value in after.items():
            if name.startswith(f"{_FRESHNESS}_bucket/"):
                counts[float(name.rpartition("/")[2])] += value - before.get(name, 0.0)
    buckets = sorted(counts.items())
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
        # Beforehand: what exports them takes seconds of all cores, which no publisher would.
        releases = [
            make_release(deployment.folder, f"{deployment.release.name}_{number}", number % 4)
            for number in range(1, switches + 1)
        ]
        worker: WorkerProcess = stack.enter_context(serving(deployment))
        deployment.produce(first_clicks())
        deployment.wait_until_consumed()
        index = InterestIndex(settings.milvus)
        stack.callback(index.close)
        readers = started(stack, "look-up", settings)
        clicker = started(stack, "click", settings)
        # Until the users that were written around the worker's takeover are written once more.
        time.sleep(settings.worker.session_timeout_s + _SETTLING_S)
        quiet = worker.metrics()
        time.sleep(_UNDISTURBED_S)
        busy = worker.metrics()
        rollbacks_ms, filled_s = [], []
        for number, release in enumerate(releases, start=1):
            publish(release, settings, index)
            began = time.monotonic()
            switch(settings, index, release.name, sample=200)
            filled_s.append(time.monotonic() - began)
            began = time.monotonic()
            rollback(settings, index)
            rollbacks_ms.append(1000 * (time.monotonic() - began))
            switch(settings, index, release.name, sample=200)  # and forth again
            # What was left in the switch before this one, as after a grace time.
            prune(settings, index, grace_s=0.75 * filled_s[-1])
            say(f"  {number} of {switches}: {filled_s[-1]:.1f} s from announced to in use")
        prune(settings, index, grace_s=0)
        end = worker.metrics()
        time.sleep(5.0)
        rest = worker.metrics()
        time.sleep(_UNDISTURBED_S)
        last = worker.metrics()
        clicker.communicate()
        told, _ = readers.communicate()
        answers = json.loads(told.splitlines()[-1])
        deployment.release = releases[-1]
        deployment.wait_until_consumed()
        audit = deployment.audit()
        index.drop_release(releases[-1].name)
    # Before and after, since a machine that others share is not as fast at all times.
    before, during = freshness_p99_s((quiet, busy), (rest, last)), freshness_p99_s((busy, end))
    return {
        "switches": switches,
        **{kind: answers[kind] for kind in ("lookups", "empty", "mixed", "failed")},
        "lookups_per_s": round(answers["per_s"]),
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
    parser.add_argument("--role", choices=_ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        _ROLES[options.role](load_settings())
        return 0
    with ExitStack() as stack:
        found = run_switches(Ground(stack), options.store, options.switches)
    say(json.dumps(found))
    wrong = sum(int(str(found[kind])) for kind in ("empty", "mixed", "failed", "differences"))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
