"""How many rows per second Milvus takes from a process that does nothing else."""

from __future__ import annotations

import itertools
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pymilvus import Collection, MilvusClient, connections

from benchmarks.columns import columns, in_order
from benchmarks.ground import WIDTH
from benchmarks.results import say
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from encoder.settings import MilvusSettings

OURS: Final = "mindstream"
_TRIAL_ROWS: Final = 50_000
_TURNS: Final = 2
_PATIENCE_S: Final = 300.0
_MOST_S: Final = 90.0
_MOST_ROWS: Final = 64_000  # a call: a server refuses requests of more than 64 MB

_Write = Callable[[str, InterestRows], None]


def alone(
    settings: MilvusSettings,
    users: Sequence[InterestRows],
    *,
    users_at_once: int,
    rows_in_all: int,
) -> dict[str, float]:
    """Rows per second by each call: pymilvus's own ones, which are the floor, and ours.

    A call returns when Milvus has logged the rows; it indexes them later, and a server falls behind
    when it is given more than it can keep up with. So each way writes as many rows as the worker
    did, or for a minute and a half, and its time ends when a strong read has them. On a server each
    way has two turns, of which the mean counts: one differs from the next with its upkeep.

    Args:
        users: rows of each user, of which random users' are written over and over.
        users_at_once: the worker's; four times as many are used where that is faster, as far as
            they fit into a request.
        rows_in_all: to write by each call, if there is time.
    """
    index = InterestIndex(patient(settings))
    most = max(1, _MOST_ROWS // len(users[0]))
    sizes = sorted({min(most, size) for size in (users_at_once, 4 * users_at_once)})
    turns: dict[str, list[float]] = defaultdict(list)
    best: dict[str, int] = {}
    try:
        for turn in range(1 if index._store.is_lite else _TURNS):
            for way, write in _ways(settings, index):
                if way not in best:
                    trials = {
                        size: _rate(index, f"trial_{way}_{size}", write, users, size, _TRIAL_ROWS)
                        for size in sizes
                    }
                    best[way] = max(trials, key=lambda size: trials[size])
                name = f"floor_{way}_{turn}"
                turns[way].append(_rate(index, name, write, users, best[way], rows_in_all))
                say(f"    {way}, {best[way]} users a call: {turns[way][-1]:,.0f} rows/s")
    finally:
        index.close()
    return {way: fmean(rates) for way, rates in turns.items()}


def patient(settings: MilvusSettings) -> MilvusSettings:
    """Settings for a strong read, which waits for all that a server still has to index."""
    return settings.model_copy(update={"timeout_s": _PATIENCE_S})


def _ways(settings: MilvusSettings, index: InterestIndex) -> Iterator[tuple[str, _Write]]:
    client = MilvusClient(settings.uri)
    warnings.filterwarnings("ignore", message=".*ORM-style")  # nothing else takes columns

    def as_dictionaries(name: str, rows: InterestRows) -> None:
        by_field = columns(rows)
        cells = zip(*by_field.values(), strict=True)
        data = [dict(zip(by_field, row, strict=True)) for row in cells]
        client.upsert(f"interests_{name}", data)

    connections.connect("bench", uri=settings.uri)
    opened: dict[str, Collection] = {}

    def collection(name: str) -> Collection:
        if name not in opened:
            opened[name] = Collection(f"interests_{name}", using="bench")
        return opened[name]

    def as_columns(name: str, rows: InterestRows) -> None:
        collection(name).upsert(in_order(collection(name), rows))

    def as_inserted_columns(name: str, rows: InterestRows) -> None:
        collection(name).insert(in_order(collection(name), rows))

    def as_we_do(name: str, rows: InterestRows) -> None:
        index.write_interests(name, rows, [], budget_s=60.0)

    yield "dictionaries", as_dictionaries
    yield "columns", as_columns
    if index._store.is_lite:  # where it replaces rows by key as well, and faster
        yield "inserted_columns", as_inserted_columns
    yield OURS, as_we_do
    connections.disconnect("bench")
    client.close()


def _rate(
    index: InterestIndex,
    name: str,
    write: _Write,
    users: Sequence[InterestRows],
    users_at_once: int,
    rows_in_all: int,
) -> float:
    rng = random.Random(0)
    drawn = [rng.sample(users, min(users_at_once, len(users))) for _ in range(8)]
    batches = itertools.cycle([joined_rows(one) for one in drawn])
    index.create_release(name, WIDTH)
    written, began = 0, time.perf_counter()
    while written < rows_in_all and time.perf_counter() - began < _MOST_S:
        batch = next(batches)
        write(name, batch)
        written += len(batch)
    user = batch.user_ids[-1]
    found = index.interests(name, [user], WIDTH, "Strong")[user]
    rate = written / (time.perf_counter() - began)
    expected = batch.vectors[[row for row, of in enumerate(batch.user_ids) if of == user]]
    if not np.array_equal(np.stack([interest.vector for interest in found]), expected):
        raise SystemExit(f"{name}: {user} was not stored as written")
    index.drop_release(name)
    return rate


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
