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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pyarrow as pa
from milvus_lite import db
from milvus_lite.adapter.grpc import servicer
from milvus_lite.cmdline import main
from milvus_lite.constants import DEFAULT_PARTITION
from milvus_lite.engine import collection, flush, recovery
from milvus_lite.engine.collection import Collection
from milvus_lite.engine.operation import InsertOp

from encoder.milvus_lite_compaction import merge_files
from encoder.milvus_lite_files import Move
from encoder.milvus_lite_memory import ColumnMemTable
from encoder.milvus_lite_rows import RequestRows
from encoder.turns import take_turns

_TRIES: Final = 3

_drop_collection = db.MilvusLite.drop_collection

T = TypeVar("T")


class SafeCollection(Collection):  # type: ignore[misc]  # the package has no types
    """A collection that several threads may write and read at the same time."""

    _next_seq: int
    _wal: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Open it as the package does."""
        self._writes = threading.RLock()  # taken before `_maintenance_lock`
        self._move: Move | None = None
        self._past_logs: list[Any] = []  # of moves that failed
        self._mover = ThreadPoolExecutor(1, "move")
        self._opened = False
        super().__init__(*args, **kwargs)
        self._opened = True

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
        self._move_on()
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
            if self._move is not None:
                self._move.give_up()
                self._past_logs.append(self._move.log)
                self._move = None
            self._close_past_logs()
            self._mover.shutdown()
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

    def close(self) -> None:
        """With all rows in files."""
        with self._writes:
            super().close()
            self._mover.shutdown()

    def _should_flush(self) -> bool:
        if not self._opened:  # logs that were left have too much: a file of them at once
            return bool(super()._should_flush())
        self._move_on()
        return False

    def _move_on(self) -> None:
        """Begin to move rows into files, or take the files over: what is due after each write."""
        limit = collection.MEMTABLE_MEMORY_LIMIT
        if self._move is not None and (
            self._move.ready or self._memtable.estimated_memory_bytes >= 2 * limit
        ):
            self._end_move(self._move)
        if self._move is None and super()._should_flush():
            log, self._wal = self._wal, self._next_log()
            self._move = Move.begin(self._mover, self._memtable, log, self)

    def _trigger_flush(self) -> None:
        # Nobody writes, and readers take what is in files under the second lock: now not between.
        with self._writes, self._maintenance_lock:
            if self._move is not None:
                self._end_move(self._move)
            super()._trigger_flush()
            self._close_past_logs()

    def _next_log(self) -> Any:
        return collection.WAL(
            wal_dir=self._wal.wal_dir,
            wal_data_schema=self._wal_data_schema,
            wal_delta_schema=self._wal_delta_schema,
            wal_number=self._wal.number + 1,
        )

    def _end_move(self, move: Move) -> None:
        """Take the files of a move over, whose rows leave memory; waits until they are written.

        Raises:
            Whatever writing them raised: memory still has all, and another move may begin.
        """
        self._move = None
        self._past_logs.append(move.log)
        files = move.files()
        memory = self._memtable.since(move.frozen)
        with self._maintenance_lock:
            for one in files:
                if one.deletions_file is not None:
                    self._delta_index._map.update(one.deleted)  # all newer than what is there
                    self._manifest.add_delta_file(one.partition, one.deletions_file)
                if one.rows_file is not None:
                    self._manifest.add_data_file(one.partition, one.rows_file)
            self._manifest.current_seq = move.frozen.max_seq
            self._manifest.active_wal_number = self._wal.number
            self._manifest.save()
            for one in files:
                if one.rows_file is not None:
                    self._segment_cache[one.partition, one.rows_file] = one.segment
            self._memtable = memory
            self._recovered_wal_bytes = 0
        self._close_past_logs()
        flush._cleanup_old_wals(self._wal.wal_dir, move.log.number)
        self._schedule_bg_maintenance()

    def _close_past_logs(self) -> None:
        for log in self._past_logs:
            log.close_and_delete()
        self._past_logs.clear()

    def _bg_compact_and_index(self) -> None:
        """Merge what is due without keeping anyone waiting; then index as the package does."""
        try:
            while merge_files(self):
                pass
            with self._maintenance_lock:
                self._cleanup_orphan_index_files()
            self._ensure_loaded_segments_indexed()
        except Exception:  # as the package has it: what failed is due again after the next move
            collection.logger.exception("files were not merged or indexed")

    def _read_snapshot(self) -> tuple[tuple[Any, ...], Any]:
        """Without a copy of all deletions: they are added to, or replaced, but not taken away."""
        with self._maintenance_lock:
            return tuple(self._segment_cache.values()), self._delta_index

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
