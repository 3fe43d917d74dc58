"""Runs the trainer again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NoReturn

from encoder.errors import Unavailable
from mindstream.one_at_a_time import RunsAlready
from mindstream.training_run import ReleaseRefused
from training.click_log import ClickLogError
from training.export import ExportError

AGAIN_AFTER_S: Final = 900.0
"""After a run that could not reach something, the next one comes this soon."""


def run_every(
    run: Callable[[], None],
    interval_s: float,
    *,
    tell: Callable[[str], None],
    alone: bool = True,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Run for ever, that long from start to start; a run that takes longer is followed at once.

    It goes on after a run that was refused, that something outside failed, that had no clicks to
    train on yet, or whose graph did not say what the model says.

    Args:
        run: one run.
        interval_s: from start to start.
        tell: is told what became of a run, and when the next is due.
        alone: whether this is the only process of the training. One of several must not go on by
            itself: whoever started them starts them all again.
        clock: seconds since 1970.
        wait: returns after so many seconds.

    Raises:
        RunsAlready: another process trains with the same cache.
        Misconfigured: the next run would fail alike.
        Unavailable: something outside failed, and this is one process of several.
    """
    while True:
        began = clock()
        due = began + interval_s
        try:
            run()
        except ReleaseRefused as exc:
            tell(f"refused: {exc}")
        except RunsAlready:
            raise
        except (ClickLogError, ExportError) as exc:
            tell(f"failed: {exc}")
        except Unavailable as exc:
            if not alone:
                raise
            tell(f"failed: {exc}")
            due = min(due, clock() + AGAIN_AFTER_S)
        pause_s = max(0.0, due - clock())
        tell(f"the next run is due at {datetime.fromtimestamp(clock() + pause_s, UTC):%F %T} UTC")
        wait(pause_s)
