"""A process that is told to stop, whatever its main thread is just doing."""

import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import threading
from mindstream.signals import stop_on_signals

stop = threading.Event()
stop_on_signals(stop, budget_s={budget_s})
print("ready", flush=True)
{main}
"""
_IN_AND_OUT_OF_WAIT = "while not stop.wait(0): pass"
_NEVER_DONE = "threading.Event().wait()"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_wait_stops_it(number: signal.Signals) -> None:
    """At any instruction: what waits holds locks that setting the event takes as well."""
    for _ in range(5):
        assert _end_code(number, _IN_AND_OUT_OF_WAIT, budget_s=10) == 0


def test_a_stop_that_outlasts_its_budget_is_ended() -> None:
    """With a code that says to start again."""
    assert _end_code(signal.SIGTERM, _NEVER_DONE, budget_s=0.1) == 75


def _end_code(number: signal.Signals, main: str, budget_s: float) -> int:
    program = _PROGRAM.format(main=main, budget_s=budget_s)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        try:
            return process.wait(60)
        finally:
            process.kill()
