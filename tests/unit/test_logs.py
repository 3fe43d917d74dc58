"""What is logged, and what must not be."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, structlog, sys
from encoder.settings import LogSettings
from mindstream.logs import configure_logging
configure_logging(LogSettings(level="debug", format=sys.argv[1]))
def connect():
    password = "hunter" + "2"
    raise OSError("refused")
try:
    connect()
except OSError:
    structlog.get_logger("encoder").exception("failed")
    logging.getLogger("kafka").exception("failed")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_tracebacks_show_no_local_variables(form: str) -> None:
    """A secret that a function holds while it fails stays out of the log."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("OSError: refused") == 2
    assert "hunter2" not in done.stderr
