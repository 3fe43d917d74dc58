"""How a worker is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import structlog

from mindstream.exit_codes import EXIT_UNAVAILABLE

log = structlog.get_logger()


def stop_on_signals(stop: threading.Event, budget_s: float) -> None:
    """Set `stop` on SIGTERM and SIGINT, and end the process if stopping outlasts the budget.

    Ending it is safe at any point: what is not committed is repeated by the next worker.
    """

    def expired() -> None:
        log.error("worker.stop_budget_spent", budget_s=budget_s)
        os._exit(EXIT_UNAVAILABLE)

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            timer = threading.Timer(budget_s, expired)
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
