"""`mindstream monitor`: how well the release in use does, for Prometheus."""

from __future__ import annotations

import threading

from mindstream import start


def monitor() -> None:
    """Measure recall, drift, collapse and coverage until SIGTERM, and serve them as metrics."""
    from mindstream.monitor import run_monitor
    from mindstream.signals import stop_on_signals

    settings = start.settings()
    stop = threading.Event()
    stop_on_signals(stop, settings.worker.stop_budget_s)
    run_monitor(settings, stop)
