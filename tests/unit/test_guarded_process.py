"""A guarded process ends when it is told to and when its owner is gone, children and all."""

import sys
from pathlib import Path

import pytest

from deploy.guarded_process import FolderClaim, GuardedProcess, ServiceError, tail
from tests.processes import end, eventually, is_running, start_owner

# Says what it is told to say when asked to end, and ends or does not.
PROGRAM = """
import signal, sys, time
def asked(signum, frame):
    print("asked by", signum, flush=True)
    if {polite}:
        sys.exit()
for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, asked)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""

OWNER = """
import os, sys, time
from pathlib import Path
from deploy.guarded_process import GuardedProcess
folder = Path(sys.argv[1])
child = "sleep 600 & echo $! > pids; sleep 600"
process = GuardedProcess(
    ["sh", "-c", child], folder=folder, log=folder / "log", stop_budget_s=5, temporary=folder
)
while not (folder / "pids").exists() or not (folder / "pids").read_text().strip():
    time.sleep(0.01)
if sys.argv[2] == "forks" and os.fork() == 0:
    os.close(1)
    time.sleep(5)
    os._exit(0)
print(process.pid, (folder / "pids").read_text(), flush=True)
time.sleep(600)
"""


def start(log: Path, *, polite: bool, stop_budget_s: float = 30.0) -> GuardedProcess:
    command = [sys.executable, "-c", PROGRAM.format(polite=polite)]
    process = GuardedProcess(command, log=log, stop_budget_s=stop_budget_s)
    assert eventually(lambda: "ready" in tail(log))
    return process


def test_stop_asks(tmp_path: Path) -> None:
    """A process that ends when it is asked to is not killed."""
    process = start(tmp_path / "log", polite=True)
    process.stop()
    assert not process.running
    assert not is_running(process.pid)
    assert tail(tmp_path / "log").splitlines() == ["ready", "asked by 15"]
    process.stop()  # harmless


def test_stop_insists(tmp_path: Path) -> None:
    """A process that does not end is killed once its budget is spent."""
    process = start(tmp_path / "log", polite=False, stop_budget_s=0.2)
    process.stop()
    assert not is_running(process.pid)
    assert "asked by 15" in tail(tmp_path / "log")


def test_kill_does_not_ask(tmp_path: Path) -> None:
    """A kill is a crash as far as the process can tell."""
    process = start(tmp_path / "log", polite=True)
    process.kill()
    assert not is_running(process.pid)
    assert tail(tmp_path / "log") == "ready"


@pytest.mark.parametrize("how", ["plain", "forks"])
def test_it_goes_with_its_owner(tmp_path: Path, how: str) -> None:
    """An owner killed outright takes the whole group along, even if a fork of it lives on."""
    (tmp_path / "own").mkdir()
    owner, pids = start_owner(OWNER, str(tmp_path / "own"), how)
    assert len(pids) == 2
    assert all(is_running(int(pid)) for pid in pids)
    end(owner)
    assert eventually(lambda: not any(is_running(int(pid)) for pid in pids), within_s=4)
    assert eventually(lambda: not (tmp_path / "own").exists())


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """The error names the command."""
    with pytest.raises(ServiceError, match="cannot run no-such-command"):
        GuardedProcess(["no-such-command"], log=tmp_path / "log", stop_budget_s=1)


def test_a_command_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    """It no longer runs, and what it said is in the log; stopping it is harmless."""
    process = GuardedProcess(["sh", "-c", "echo done"], log=tmp_path / "log", stop_budget_s=1)
    assert eventually(lambda: not process.running)
    assert tail(tmp_path / "log") == "done"
    process.stop()


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    """A second claim is refused without waiting, since the first one's process is alive."""
    first = FolderClaim(tmp_path, wait_s=60, busy="in use")
    with pytest.raises(ServiceError, match="in use"):
        FolderClaim(tmp_path, wait_s=60, busy="in use")
    first.release()
    FolderClaim(tmp_path, wait_s=0, busy="in use").release()


def test_a_claim_is_inherited(tmp_path: Path) -> None:
    """It lasts until the process that was started under it is gone."""
    claim = FolderClaim(tmp_path, wait_s=0, busy="in use")
    process = GuardedProcess(["sleep", "600"], log=tmp_path / "log", stop_budget_s=5, claim=claim)
    claim.release()
    with pytest.raises(ServiceError, match="in use"):
        FolderClaim(tmp_path, wait_s=0, busy="in use")
    process.stop()
    FolderClaim(tmp_path, wait_s=0, busy="in use").release()
