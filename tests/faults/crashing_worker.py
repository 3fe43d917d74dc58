"""A worker that kills itself: `python -m tests.faults.crashing_worker STEP NTH` (or neither)."""

import os
import signal
import sys
import threading

from consumers.update_loop import Step
from consumers.worker import run_worker
from encoder.settings import load_settings
from mindstream.logs import configure_logging
from mindstream.signals import stop_on_signals


def main() -> None:
    settings = load_settings()
    configure_logging(settings.log)
    crash_step, nth = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else ("", 0)
    seen = 0

    def after_step(step: Step) -> None:
        nonlocal seen
        if step == crash_step:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    stop = threading.Event()
    stop_on_signals(stop, settings.worker.stop_budget_s)
    run_worker(settings, stop, after_step=after_step)


if __name__ == "__main__":
    main()
