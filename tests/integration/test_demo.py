"""The demonstration, from nothing to its JSON line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLICKS = 3000
EXAMPLES = 40_000  # a fifth of the demonstration's
PROMISED = {
    "clicks",
    "users",
    "rows",
    "rejected",
    "clicks_per_s",
    "freshness_p50_ms",
    "freshness_p99_ms",
    "recall_at_50",
}


@pytest.mark.timeout(600)  # minutes, while other tests run beside it
def test_the_demo_measures_and_finds_the_store_to_be_the_fold(tmp_path: Path) -> None:
    """Trains on the real data, replays part of the newest, and exits with 0 as nothing differs."""
    options = ["--once", "--json", "--clicks", str(CLICKS), "--folder", str(tmp_path / "demo")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MINDSTREAM_MILVUS")}
    done = subprocess.run(
        [sys.executable, "-m", "mindstream", "demo", *options],
        env={**kept, "MINDSTREAM_TRAINER__EXAMPLES": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    measured = json.loads(done.stdout)
    assert set(measured) >= PROMISED
    assert measured["clicks"] == CLICKS
    assert measured["differences"] == measured["rejected"] == 0
    assert measured["freshness_samples"] > 0
    assert 0 < measured["freshness_p50_ms"] <= measured["freshness_p99_ms"]
    assert measured["rows"] > measured["users"] > 5000
    assert measured["recall_at_50"] > 0.02  # above a random 50 of 5,000 items
