"""Milvus Lite as this project runs it: safe for several threads, whose reads get their turn.

Its server answers from many threads, embedded too, and its collections are not made for that
(docs/decisions/0023-milvus-lite.md): while one thread moves rows from memory into a file, another
finds neither, and two that write at a time can fail. Whoever opens a folder calls
`use_safe_collections` first; `python -m encoder.milvus_lite server --data-dir FOLDER --port PORT`
is the package's server with that.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from milvus_lite import db
from milvus_lite.cmdline import main
from milvus_lite.engine import collection, recovery
from milvus_lite.engine.collection import Collection

from encoder.milvus_lite_memory import ColumnMemTable
from encoder.turns import take_turns

_TRIES: Final = 3

T = TypeVar("T")


class SafeCollection(Collection):  # type: ignore[misc]  # the package has no types
    """A collection that several threads may write and read at the same time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Open it as the package does."""
        self._writes = threading.RLock()  # taken before `_maintenance_lock`
        super().__init__(*args, **kwargs)

    def insert(self, *args: Any, **kwargs: Any) -> Any:
        """One thread at a time."""
        with self._writes:
            return super().insert(*args, **kwargs)

    def upsert(self, *args: Any, **kwargs: Any) -> Any:
        """One thread at a time."""
        with self._writes:
            return super().upsert(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        """One thread at a time."""
        with self._writes:
            return super().delete(*args, **kwargs)

    def flush(self) -> None:
        """One thread at a time."""
        with self._writes:
            super().flush()

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """From memory and files as they are at one moment."""
        return self._undisturbed(lambda: super(SafeCollection, self).get(*args, **kwargs))

    def query(self, *args: Any, **kwargs: Any) -> Any:
        """From memory and files as they are at one moment."""
        return self._undisturbed(lambda: super(SafeCollection, self).query(*args, **kwargs))

    def search(self, *args: Any, **kwargs: Any) -> Any:
        """From memory and files as they are at one moment."""
        return self._undisturbed(lambda: super(SafeCollection, self).search(*args, **kwargs))

    def _num_entities(self, *args: Any, **kwargs: Any) -> Any:
        return self._undisturbed(lambda: super(SafeCollection, self)._num_entities(*args, **kwargs))

    def _trigger_flush(self) -> None:
        # Readers take what is in files under this lock: now not between the two.
        with self._maintenance_lock:
            super()._trigger_flush()

    def _undisturbed(self, read: Callable[[], T]) -> T:
        """Read again if rows went into a file meanwhile; in the end, when none can."""
        for _ in range(_TRIES):
            with self._maintenance_lock:
                in_memory = self._memtable
            found = read()
            if self._memtable is in_memory:
                return found
        with self._writes:
            return read()


def use_safe_collections() -> None:
    """Have every folder that this process opens from now on made of safe collections."""
    db.Collection = SafeCollection
    collection.MemTable = recovery.MemTable = ColumnMemTable


if __name__ == "__main__":
    use_safe_collections()
    take_turns()
    sys.exit(main())
