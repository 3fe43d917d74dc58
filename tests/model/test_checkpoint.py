"""A training that was killed goes on where it was, and ends as if it had not been."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kept_training import CONFIG, bits, train
from training.checkpoint import CheckpointError, Checkpoints

ROOT = Path(__file__).parents[2]


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Killed in its trials, and again in the training itself; the weights are the same."""
    whole, _ = train(None)
    for stage in ("trial_1", "training"):
        started = start(tmp_path)
        wait_for(tmp_path / f"{stage}.safetensors", started)
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
    model, curve = train(Checkpoints(tmp_path))
    assert bits(model) == bits(whole)
    steps = [point.step for point in curve.points]
    assert steps == sorted(set(steps))
    assert steps[-1] > 100


def test_it_goes_on_and_does_not_begin_again(tmp_path: Path) -> None:
    """What a checkpoint holds is not trained again: a finished training takes no step."""
    model, curve = train(Checkpoints(tmp_path))
    steps: list[int] = []
    again, same = train(Checkpoints(tmp_path), progress=lambda at: steps.append(at.done))
    assert bits(again) == bits(model)
    assert same.points == curve.points
    assert max(steps, default=0) <= 1  # "choosing" alone


@pytest.mark.parametrize(
    ("change", "users", "message"),
    [
        ({"learning_rate": 0.5}, 2500, "learning_rate 0.02 instead of 0.5"),
        ({}, 2400, "other clicks"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, change: dict[str, float], users: int, message: str
) -> None:
    """The message says in what it differs, and the file stays as it was."""
    train(Checkpoints(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    config = dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        train(Checkpoints(tmp_path), config=config, users=users)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_threads_may_go_on(tmp_path: Path) -> None:
    """A machine with fewer cores does not throw away what was trained."""
    train(Checkpoints(tmp_path))
    train(Checkpoints(tmp_path), config=dataclasses.replace(CONFIG, threads=1))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """It is named."""
    (tmp_path / "trial_0.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match=r"trial_0\.safetensors is no checkpoint"):
        train(Checkpoints(tmp_path))


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.kept_training", str(folder)], cwd=ROOT)


def wait_for(path: Path, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert started.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
