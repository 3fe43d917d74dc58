"""Follows the items topic beside the loop."""

from __future__ import annotations

import threading
from typing import Final

import structlog

from encoder.errors import Unavailable
from encoder.item_topic import ItemFollower

_FOLLOW_S: Final = 0.5
_STOP_S: Final = 2.0

log = structlog.get_logger()


class ItemWatch:
    """Reads items on a thread of its own."""

    def __init__(self, follower: ItemFollower) -> None:
        """Do nothing before `start`.

        Args:
            follower: has read the topic to its end.
        """
        self._follower = follower
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="items", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def check(self) -> None:
        """See that it goes on.

        Raises:
            Whatever ended the thread.
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Follow no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)  # it closes what it reads with, if need be later
        else:
            self._follower.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._follower.poll(stopping=self._stop.is_set)
                except Unavailable as exc:
                    log.warning("items.not_followed", error=str(exc))
                self._stop.wait(_FOLLOW_S)
        except BaseException as exc:
            self._failure = exc
        finally:
            self._follower.close()
