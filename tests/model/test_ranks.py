"""Two processes train what one does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kept_training import bits, train

ROOT = Path(__file__).parents[2]


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Under torchrun each takes half of every batch: same losses and weights, up to rounding."""
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, "-m", *command, "-m", "tests.kept_training", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    model, curve = train(None)
    points = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [point.step for point in curve.points]
    losses = [point.loss for point in curve.points]
    assert [point["loss"] for point in points] == pytest.approx(losses, rel=1e-3)
    first, second = ((tmp_path / f"rank_{rank}.bits").read_bytes() for rank in range(2))
    assert first == second
    assert first != bits(model)  # or else the work was not shared
    apart = np.frombuffer(first, np.float32) - np.frombuffer(bits(model), np.float32)
    assert np.sqrt((apart**2).mean()) < 1e-3
