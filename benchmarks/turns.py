"""What readers of Milvus Lite wait while a process writes as fast as it can."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from benchmarks.ground import INTERESTS, WIDTH, Ground
from benchmarks.results import Result, percentiles_ms
from benchmarks.write_floor import joined_rows, rows_of_users
from deploy.local_milvus import LocalMilvusLite
from encoder.interest_index import InterestIndex
from encoder.settings import MilvusSettings

_RELEASE: Final = "bare"
_USERS: Final = 30_000
_USERS_AT_ONCE: Final = 2_500  # 10,000 rows, about a batch of a worker that catches up
_READS: Final = 1_000
_PAUSE_S: Final = 0.005


def turns(ground: Ground) -> Iterator[Result]:
    """One user's rows by key, and how many rows are written meanwhile.

    The floor is Milvus Lite's server as its package has it, where a read may miss rows: such are
    counted, and must not be where it runs as we have it.
    """
    spawning = multiprocessing.get_context("spawn")
    own: dict[str, float] = {}
    for as_packaged in (True, False):
        with LocalMilvusLite(as_packaged=as_packaged) as lite:
            ours, theirs = spawning.Pipe()
            writer = spawning.Process(target=_write, args=(lite.uri, ground.size(_USERS), theirs))
            writer.start()
            index = InterestIndex(MilvusSettings(uri=lite.uri))
            try:
                ours.recv()  # every user's rows are there
                seconds, missed = _read(index, ground)
                ours.send("enough")
                rate = float(ours.recv())
            finally:
                index.close()
                writer.terminate()  # which is over, unless reading failed
                writer.join()
        if missed and not as_packaged:
            raise SystemExit(f"turns: {missed} of {len(seconds)} reads missed rows")
        longest_ms = round(1000 * max(seconds), 1)
        found = {**percentiles_ms(seconds), "max_ms": longest_ms, "rows_per_s": rate}
        own = own or found
        name = "turns-packaged" if as_packaged else "turns"
        details: dict[str, object] = {**found, "reads": len(seconds), "missed": missed}
        for at in ("p50_ms", "p99_ms", "max_ms"):
            yield Result(f"{name}-{at[:3]}", found[at], "ms", own[at], details=details)
        yield Result(f"{name}-rows", rate, "rows/s", own["rows_per_s"], details=details)


def _read(index: InterestIndex, ground: Ground) -> tuple[list[float], int]:
    """Seconds of each read, and how many did not find all of the user's rows."""
    rng = np.random.default_rng(ground.seed)
    seconds, missed = [], 0
    for user in rng.integers(0, ground.size(_USERS), ground.size(_READS)).tolist():
        time.sleep(_PAUSE_S)
        user_id = f"user-{user:08d}"
        began = time.perf_counter()
        found = index.interests(_RELEASE, [user_id], INTERESTS, "Strong")
        seconds.append(time.perf_counter() - began)
        missed += len(found.get(user_id, ())) != INTERESTS
    return seconds, missed


def _write(uri: str, users: int, reader: Connection) -> None:
    """Write every user's rows, say so, and go on with random users' until told to end."""
    index = InterestIndex(MilvusSettings(uri=uri))
    index.create_release(_RELEASE, WIDTH)
    rows = rows_of_users(users, INTERESTS)
    batches = [
        joined_rows(rows[start : start + _USERS_AT_ONCE])
        for start in range(0, users, _USERS_AT_ONCE)
    ]
    for batch in batches:
        index.write_interests(_RELEASE, batch, [], budget_s=60.0)
    reader.send("all")
    rng, written, began = np.random.default_rng(0), 0, time.perf_counter()
    while not reader.poll():
        batch = batches[int(rng.integers(len(batches)))]
        index.write_interests(_RELEASE, batch, [], budget_s=60.0)
        written += len(batch)
    reader.send(written / (time.perf_counter() - began))
    index.close()
