"""What goes on in a thread of its own until its context ends."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Background(ABC):
    """Begins with its context; what it raises is raised at the context's end."""

    def __init__(self, name: str) -> None:
        """Nothing runs yet.

        Args:
            name: of the thread.
        """
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._raised: Exception | None = None

    @abstractmethod
    def _work(self) -> None:
        """Go on until `_over` is set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._raised is not None and error is None:
            raise self._raised

    def _run(self) -> None:
        try:
            self._work()
        except Exception as exc:
            self._raised = exc
