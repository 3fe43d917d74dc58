"""What tests ask of other processes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def eventually(fact: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Whether ``fact`` becomes true within that time."""
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_running(pid: int) -> bool:
    """Whether a process has that id; one that ended but was not waited for has not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):  # it may end at any of these steps
        return False


def listening(pid: int) -> set[str]:
    """The addresses that a process listens on (Linux)."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    addresses = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                words = bytes.fromhex(local.split(":")[0])
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                addresses.add(socket.inet_ntop(family, address).removeprefix("::ffff:"))
    return addresses


def start_owner(script: str, *arguments: str) -> tuple[subprocess.Popen[str], list[str]]:
    """Run a Python script that prints one line once its work is done and then stays.

    Returns:
        The process, and the words of the line.
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    return owner, owner.stdout.readline().split()


def end(owner: subprocess.Popen[str]) -> None:
    """Kill a process outright and collect it."""
    owner.kill()
    owner.communicate()
