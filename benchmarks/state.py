"""Windows in memory and on their topic: bytes a user, and how fast a worker has them back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.ground import ITEMS, LENGTH, PARTITIONS, Ground, serving
from benchmarks.results import Result, at_least, at_most, say
from consumers.packed_window import CLICK_DTYPE, ItemCodes
from consumers.window_store import WindowStore
from consumers.window_wire import to_wires
from encoder.kafka_client import producer
from encoder.release_topic import filled_reports
from encoder.windows_topic import read_window_records
from tests.deployment import T0, Deployment

USERS = 1_000_000
_AT_ONCE = 5_000
_BYTES_GOAL = 1024
_RESTORE_GOAL = 100_000


def state(ground: Ground) -> Iterator[Result]:
    """Memory in a process of its own, then the topic."""
    users = ground.size(USERS)
    yield from _memory(users)
    with ground.deployment("lite") as deployment:
        say(f"  writing {users:,} windows")
        _write(deployment, users)
        store = WindowStore()
        for partition in range(PARTITIONS):
            store.add_partition(partition)
        kafka = deployment.settings.kafka
        began = time.perf_counter()
        for gathered in read_window_records(kafka, range(PARTITIONS), timeout_s=60.0):
            store.restore(gathered)
        restored_s = time.perf_counter() - began
        began = time.perf_counter()
        count = sum(
            len(part)
            for gathered in read_window_records(kafka, range(PARTITIONS), timeout_s=60.0)
            for part in gathered
        )
        read_s = time.perf_counter() - began
        if len(store) != count or count != users or not _right(store, users):
            raise SystemExit(f"state: {len(store)} of {users} windows restored")
        del store
        yield at_least(
            "state-restore",
            users / restored_s,
            "windows/s",
            _RESTORE_GOAL,
            read_alone_per_s=round(users / read_s),
            seconds=round(restored_s, 1),
        )
        began = time.perf_counter()
        with serving(deployment):
            ready_s = time.perf_counter() - began
        yield Result(
            "state-start-to-ready", ready_s, "s", details={"windows": users, "partitions": 8}
        )


def _memory(users: int) -> Iterator[Result]:
    """One command measures it alone, since memory of this process says little by now."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.window_memory", "--users", str(users)],
        check=True,
        capture_output=True,
        text=True,
    )
    value = json.loads(done.stdout)["value"]
    yield at_most("state-memory", value, "bytes/user", _BYTES_GOAL, users=users, length=LENGTH)


def _window(user: int) -> np.ndarray:
    """A user's clicks, the same on every call."""
    numbers = np.arange(LENGTH, dtype=np.int64)
    clicks = np.empty(LENGTH, CLICK_DTYPE)
    clicks["timestamp_ms"] = T0 + numbers * 1000 + user % 1000
    clicks["code"] = (user * 31 + numbers * 7919) % ITEMS
    return clicks


def _user(user: int) -> str:
    return f"user-{user:08d}"


def _write(deployment: Deployment, users: int) -> None:
    """Windows as workers would have left them, all partitions reported as filled."""
    codes = ItemCodes()
    for item in range(ITEMS):
        codes.code(f"item-{item + 1}")
    kafka = deployment.settings.kafka
    client = producer(kafka, linger_ms=20, batch_size=1 << 18, compression_type="lz4")
    for first in range(0, users, _AT_ONCE):
        some = range(first, min(users, first + _AT_ONCE))
        packed = [bytes(8) + _window(user).tobytes() for user in some]
        for user, value in zip(some, to_wires(packed, codes), strict=True):
            client.send(
                kafka.windows_topic,
                key=_user(user).encode(),
                value=value,
                partition=user % PARTITIONS,
            )
    for key, report in filled_reports(deployment.release.name, range(PARTITIONS)):
        client.send(kafka.releases_topic, key=key, value=report)
    client.flush()
    client.close()


def _right(store: WindowStore, users: int) -> bool:
    for user in range(0, users, max(1, users // 500)):
        packed = store.packed(user % PARTITIONS, _user(user))
        found, expected = np.frombuffer(packed[8:], CLICK_DTYPE), _window(user)
        items = [store.codes.item(code) for code in found["code"].tolist()]
        if items != [f"item-{code + 1}" for code in expected["code"].tolist()]:
            return False
        if not np.array_equal(found["timestamp_ms"], expected["timestamp_ms"]):
            return False
    return True
