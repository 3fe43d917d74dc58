"""Works out an iterator's next items in a thread while the last ones are being used."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import Empty, Queue
from typing import Generic, TypeVar

T = TypeVar("T")


class _End(Generic[T]):
    """What comes after the last item: the error that ended the source, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def read_ahead(source: Generator[T], *, most: int = 1) -> Generator[T]:
    """The items of `source`, in order, each taken from it in a thread of its own.

    The source is closed in that thread, when it ends or once nobody wants more of it.

    Args:
        source: is used by the thread alone.
        most: items held in advance, beside the one that is being worked out.

    Raises:
        BaseException: whatever the source raised, where it raised it.
    """
    items: Queue[T | _End[T]] = Queue(maxsize=most)
    unwanted = threading.Event()

    def run() -> None:
        try:
            for item in source:
                items.put(item)
                if unwanted.is_set():
                    break
        except BaseException as exc:  # raised again by the reader
            items.put(_End(exc))
        else:
            items.put(_End())
        finally:
            source.close()

    thread = threading.Thread(target=run, name="read-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        unwanted.set()
        while thread.is_alive():
            try:
                items.get(timeout=0.05)
            except Empty:
                continue
