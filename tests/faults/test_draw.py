"""One draw of the faults, a few times each; `make faults` injects all of them."""

import subprocess
import sys

import pytest

_WITHIN_S = 880


@pytest.mark.timeout(_WITHIN_S + 20)
def test_a_draw_of_faults_does_no_harm() -> None:
    """In a process of its own, with a broker and stores that may be killed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick"],
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
