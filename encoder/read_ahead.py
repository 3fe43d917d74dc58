"""Works out an iterator's next items in a thread while the last ones are being used."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import suppress
from queue import Full, Queue
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_LOOK_AGAIN_S: Final = 0.1


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

    def put(item: T | _End[T]) -> None:
        while not unwanted.is_set():
            with suppress(Full):
                items.put(item, timeout=_LOOK_AGAIN_S)
                return

    def run() -> None:
        try:
            for item in source:
                put(item)
                if unwanted.is_set():
                    break
        except BaseException as exc:  # raised again by the reader
            put(_End(exc))
        else:
            put(_End())
        finally:
            source.close()

    threading.Thread(target=run, name="read-ahead", daemon=True).start()
    try:
        while not isinstance(item := items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        unwanted.set()  # not waited for: the source may be waiting itself
