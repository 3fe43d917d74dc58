"""Resident memory of a user's window, all told: `python -m benchmarks.window_memory`.

Fills a store with full windows, and compares the process's resident memory before and after.
"""

import argparse
import gc
import json
import platform
import random
import resource
import sys
from pathlib import Path

from consumers.packed_window import EMPTY, merge_clicks, unpack
from consumers.window_store import WindowStore
from encoder.window import window_of

_CHECKED = 200


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def clicks_of(user: int, length: int) -> list[tuple[int, str]]:
    """A user's clicks, the same on every call; ids like those of a real catalogue."""
    rng = random.Random(user)
    now = 1_700_000_000_000
    return [
        (now + rng.randrange(10**9), f"some product's title, number {rng.randrange(50_000)}")
        for _ in range(length)
    ]


def main() -> None:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--length", type=int, default=50)
    arguments = parser.parse_args()
    store = WindowStore()
    store.add_partition(0)
    for item in range(50_000):  # the items' ids are paid for once, not per user
        store.codes.code(f"some product's title, number {item}")
    gc.collect()
    before = resident_bytes()
    for user in range(arguments.users):
        clicks = clicks_of(user, arguments.length)
        packed = merge_clicks(EMPTY, clicks, store.codes, length=arguments.length)
        store.put(0, {f"user-{user:09d}": packed})
    gc.collect()
    grown = resident_bytes() - before
    for user in random.Random(0).sample(range(arguments.users), _CHECKED):
        expected = window_of(clicks_of(user, arguments.length), length=arguments.length)
        if unpack(store.packed(0, f"user-{user:09d}"), store.codes) != expected:
            sys.exit(f"the window of user {user} is wrong")
    value = grown / arguments.users
    print(
        json.dumps(
            {
                "name": "window-memory",
                "value": round(value),
                "unit": "bytes/user",
                "goal": 1024,
                "met": value < 1024,
                "users": arguments.users,
                "length": arguments.length,
                "machine": platform.machine(),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
