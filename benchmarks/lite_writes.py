"""Two ways to write rows again on Milvus Lite: `python -m benchmarks.lite_writes [--users N]`."""

import argparse
import json
import random
import time
import uuid

from benchmarks.ground import WIDTH
from benchmarks.throughput import joined_rows, rows_of_users
from deploy.local_milvus import LocalMilvusLite
from encoder.interest_index import InterestIndex
from encoder.settings import MilvusSettings

_AT_ONCE = 1000
_SECONDS = 15.0
_BUDGET_S = 120.0


def rate(index: InterestIndex, users: int, *, by_insert: bool) -> float:
    """Rows per second that replace rows which Lite has flushed."""
    rows = rows_of_users(users, 3)
    release = f"rewritten_{uuid.uuid4().hex[:8]}"
    index.create_release(release, WIDTH)
    # What the store does on a server it does not do on Lite, and the other way round.
    vars(index._store)["is_lite"] = by_insert
    for start in range(0, users, _AT_ONCE):
        some = range(start, min(users, start + _AT_ONCE))
        stale = [f"user-{user:08d}#3" for user in some]
        part = joined_rows(rows[start : start + _AT_ONCE])
        index.write_interests(release, part, stale, budget_s=_BUDGET_S)
    index._store.flush(f"interests_{release}")
    rng = random.Random(0)
    written, seconds, began = 0, 0.0, time.perf_counter()
    while seconds < _SECONDS:
        batch = joined_rows(rng.sample(rows, min(_AT_ONCE, users)))
        index.write_interests(release, batch, [], budget_s=_BUDGET_S)
        written += len(batch)
        seconds = time.perf_counter() - began
    index.drop_release(release)
    return written / seconds


def main() -> None:
    """Print both rates and their ratio, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=40_000)
    options = parser.parse_args()
    with LocalMilvusLite() as lite:
        index = InterestIndex(MilvusSettings(uri=lite.uri))
        upsert = rate(index, options.users, by_insert=False)
        insert = rate(index, options.users, by_insert=True)
        index.close()
    found = {"upsert_rows_per_s": round(upsert), "insert_rows_per_s": round(insert)}
    print(json.dumps({**found, "ratio": round(insert / upsert, 1)}))


if __name__ == "__main__":
    main()
