"""A command that must not run twice at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from encoder.errors import Unavailable
from mindstream.one_at_a_time import only_one


def test_the_second_says_so_and_leaves(tmp_path: Path) -> None:
    """While another process holds the lock; a process that was killed holds none."""
    path = tmp_path / "cache" / "lock"
    program = (
        "from pathlib import Path; import time\n"
        "from mindstream.one_at_a_time import only_one\n"
        f"with only_one(Path({str(path)!r}), 'training'):\n"
        "    print('has it', flush=True); time.sleep(99)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with (
            pytest.raises(Unavailable, match="another process is training already"),
            only_one(path, "training"),
        ):
            pass
    finally:
        other.kill()
        other.communicate()
    with only_one(path, "training"):
        pass
