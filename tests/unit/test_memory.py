"""Freed memory leaves the process."""

import subprocess
import sys

PROGRAM = """
import threading
from pathlib import Path
from consumers.memory import bound_heaps, give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def churn():
    kept = []
    for _ in range(200):
        kept.append(bytes(100_000))  # small enough for a heap
        kept.append(object())
    pinned.append(bytes(1000))  # the end of the heap stays in use

bound_heaps()
pinned = []
before = resident()
for _ in range(12):
    threads = [threading.Thread(target=churn) for _ in range(4)]
    for one in threads: one.start()
    for one in threads: one.join()
give_back()
print(resident() - before)
"""


def test_what_threads_freed_is_returned() -> None:
    """In a process of its own: heaps are bound for good."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4_000_000
