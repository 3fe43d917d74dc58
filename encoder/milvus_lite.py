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

import pyarrow as pa
from milvus_lite import db
from milvus_lite.adapter.grpc import servicer
from milvus_lite.cmdline import main
from milvus_lite.constants import DEFAULT_PARTITION
from milvus_lite.engine import collection, recovery
from milvus_lite.engine.collection import Collection
from milvus_lite.engine.operation import InsertOp

from encoder.milvus_lite_memory import ColumnMemTable
from encoder.milvus_lite_rows import RequestRows
from encoder.turns import take_turns

_TRIES: Final = 3

_drop_collection = db.MilvusLite.drop_collection

T = TypeVar("T")


class SafeCollection(Collection):  # type: ignore[misc]  # the package has no types
    """A collection that several threads may write and read at the same time."""

    _next_seq: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Open it as the package does."""
        self._writes = threading.RLock()  # taken before `_maintenance_lock`
        super().__init__(*args, **kwargs)

    def insert(
        self, records: RequestRows | list[Any], partition_name: str = DEFAULT_PARTITION
    ) -> Any:
        """One thread at a time; by columns where that can be."""
        with self._writes:
            if not isinstance(records, RequestRows):
                return super().insert(records, partition_name)
            columns = None
            plain = not self._auto_id and self._partition_key_field is None
            if plain and self._manifest.has_partition(partition_name):
                columns = records.columns(self._schema, self._wal_data_schema)
            if columns is None:
                return super().insert(records.records(), partition_name)
            return self._insert_columns(columns, records.num_rows, partition_name)

    def _insert_columns(self, columns: dict[str, Any], count: int, partition: str) -> Any:
        # What the package's `insert` does with rows that it has looked at.
        first, self._next_seq = self._next_seq, self._next_seq + count
        own: dict[str, Any] = {
            "_seq": pa.array(range(first, first + count), pa.uint64()),
            "_partition": pa.array([partition] * count),
        }
        batch = pa.RecordBatch.from_pydict({**own, **columns}, schema=self._wal_data_schema)
        self._apply(InsertOp(partition=partition, batch=batch))
        if self._should_flush():
            self._trigger_flush()
        return columns[self._pk_name].to_pylist()

    def upsert(
        self, records: RequestRows | list[Any], partition_name: str = DEFAULT_PARTITION
    ) -> Any:
        """One thread at a time."""
        with self._writes:
            rows = records.records() if isinstance(records, RequestRows) else records
            return super().upsert(rows, partition_name)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        """One thread at a time."""
        with self._writes:
            return super().delete(*args, **kwargs)

    def flush(self) -> None:
        """One thread at a time."""
        with self._writes:
            super().flush()

    def discard(self) -> None:
        """Forget rows in memory and what is to be compacted; closing would write and index them."""
        with self._writes, self._maintenance_lock:
            self._memtable = collection.MemTable(self._schema)
            self._bg_closed = True
            self._bg_executor.shutdown(wait=False, cancel_futures=True)

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


def _drop(self: db.MilvusLite, name: str, database_name: str = db.DEFAULT_DATABASE_NAME) -> None:
    """Drop a collection without making files of it first."""
    resolved = self.resolve_collection_name(name, database_name=database_name)
    dropped = self._collections.get((database_name or db.DEFAULT_DATABASE_NAME, resolved))
    if dropped is not None:
        dropped.discard()
    _drop_collection(self, name, database_name)


def use_safe_collections() -> None:
    """Have every folder that this process opens from now on made of safe collections."""
    db.Collection = SafeCollection
    db.MilvusLite.drop_collection = _drop
    collection.MemTable = recovery.MemTable = ColumnMemTable
    servicer.fields_data_to_records = RequestRows


if __name__ == "__main__":
    use_safe_collections()
    take_turns()
    sys.exit(main())
