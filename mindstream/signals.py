"""How a worker is told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Final

import structlog

from mindstream.exit_codes import EXIT_UNAVAILABLE

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger()


def stop_on_signals(stop: threading.Event, budget_s: float) -> None:
    """Set `stop` on SIGTERM and SIGINT, and end the process if stopping outlasts the budget.

    Ending it is safe at any point: what is not committed is repeated by the next worker. Must be
    called from the main thread.

    A thread of its own sets the event. A handler would run in the main thread between any two
    instructions, also while that thread waits for `stop` and holds the lock that setting it takes:
    it would wait for itself for ever.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while os.read(reading, 1)[0] not in _STOPPING:
            pass
        stop.set()
        time.sleep(budget_s)
        log.error("worker.stop_budget_spent", budget_s=budget_s)
        os._exit(EXIT_UNAVAILABLE)

    for number in _STOPPING:
        signal.signal(number, lambda *_: None)  # or else the process would end
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # gets the number of each signal
    threading.Thread(target=watch, name="signals", daemon=True).start()
