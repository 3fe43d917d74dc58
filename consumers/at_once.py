"""Several calls at once, each waiting for an answer of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Make the calls, each but the first on a thread of its own; returns once all have ended.

    Raises:
        Whatever the first of them that failed raised. Nothing of the others is under way then.
    """
    raised: dict[int, BaseException] = {}

    def run(number: int) -> None:
        try:
            calls[number]()
        except BaseException as exc:
            raised[number] = exc

    # Daemons: a process that ends must not wait for a store that hangs.
    threads = [
        threading.Thread(target=run, args=(number,), name=f"at-once-{number}", daemon=True)
        for number in range(1, len(calls))
    ]
    for thread in threads:
        thread.start()
    if calls:
        run(0)
    for thread in threads:
        thread.join()
    if raised:
        raise raised[min(raised)]
