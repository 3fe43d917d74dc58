"""What Milvus Lite holds in memory, made a file of and searched column by column.

The package goes from cell to cell in Python, which for the 128 MB that gather is two seconds in
which nobody reads or writes (docs/decisions/0023-milvus-lite.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice, repeat
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from milvus_lite.storage.memtable import MemTable
from numpy.typing import NDArray

AT_ONCE: Final = 5_000  # rows of a step in which no other thread can run

Tables = dict[str, tuple[pa.Table | None, pa.Table | None]]
"""By partition of a collection: the rows, and the keys that were deleted; None where none are."""

Snapshot = tuple[
    list[Any], NDArray[np.uint64], NDArray[np.float32], list[tuple[int, int]], pa.Table | None
]
"""Keys, numbers (n,) and vectors (n, D) of n rows, where each is, and their table if asked for."""


class ColumnMemTable(MemTable):  # type: ignore[misc]  # the package has no types
    """The package's in all else."""

    _pk_index: dict[Any, tuple[int, int, int]]  # number of the batch, of the row in it, and `_seq`
    _newest = -1  # the highest `_seq` of all that was ever applied

    def apply_insert(self, batch: pa.RecordBatch) -> None:
        """All at once where each row is newer than everything here, and nothing was deleted."""
        with self._lock:
            numbers = batch.column("_seq").to_numpy() if batch.num_rows else np.zeros(0, np.uint64)
            in_order = len(numbers) > 0 and bool(np.all(numbers[1:] > numbers[:-1]))
            newest, self._newest = self._newest, max(self._newest, int(numbers.max(initial=0)))
            if not in_order or int(numbers[0]) <= newest or self._delete_index:
                super().apply_insert(batch)
                return
            self._validate_insert_schema(batch)
            places = zip(repeat(len(self._insert_batches)), count(), numbers.tolist(), strict=False)
            self._pk_index.update(
                zip(batch.column(self._pk_name).to_pylist(), places, strict=False)
            )
            self._insert_batches.append(batch)
            self._insert_bytes += batch.get_total_buffer_size()

    def apply_delete(self, batch: pa.RecordBatch) -> None:
        """As the package does it."""
        with self._lock:
            if batch.num_rows:
                self._newest = max(self._newest, batch.column("_seq")[0].as_py())
            super().apply_delete(batch)

    def frozen(self) -> ColumnMemTable:
        """What is here now, to be read and written to files by another thread."""
        with self._lock:
            copy = ColumnMemTable(self._schema)
            copy._insert_batches = self._insert_batches.copy()
            copy._pk_index = self._pk_index.copy()
            copy._delete_index = self._delete_index.copy()
            copy._newest = self._newest
            return copy

    def since(self, frozen: ColumnMemTable) -> ColumnMemTable:
        """What came after `frozen` was made of this; nobody may write to it meanwhile."""
        first, newest = len(frozen._insert_batches), frozen._newest
        rest = ColumnMemTable(self._schema)
        rest._insert_batches = self._insert_batches[first:]
        rest._pk_index = {
            key: (batch - first, row, number)
            for key, (batch, row, number) in self._pk_index.items()
            if batch >= first
        }
        rest._delete_index = {
            key: entry for key, entry in self._delete_index.items() if entry[0] > newest
        }
        rest._newest = self._newest
        rest._insert_bytes = sum(one.get_total_buffer_size() for one in rest._insert_batches)
        rest._delete_bytes = sum(
            self._delete_entry_bytes(key, entry) for key, entry in rest._delete_index.items()
        )
        return rest

    def flush(self, known_partitions: Sequence[str] | None = None) -> Tables:
        """The same tables as the package's, rows in the same order."""
        with self._lock:
            live, self._pk_index = self._pk_index, {}
            try:
                found: Tables = super().flush(known_partitions)
            finally:
                self._pk_index = live
            for partition, rows in self._rows_by_partition():
                found[partition] = rows, found.get(partition, (None, None))[1]
        return found

    def to_search_snapshot(
        self,
        vector_field: str | None,
        partition_names: list[str] | None = None,
        include_table: bool = False,
    ) -> Snapshot:
        """The same candidates as the package's, in the same order, for searches and queries."""
        with self._lock:
            keys, seqs, vectors, places, table = super().to_search_snapshot(
                None, partition_names, include_table
            )
            if vector_field is not None and places:
                found = self._vectors(vector_field, np.array(places, np.int64))
                if found is None:
                    everything: Snapshot = super().to_search_snapshot(
                        vector_field, partition_names, include_table
                    )
                    return everything
                vectors = found
        return keys, seqs, vectors, places, table

    def to_search_arrays(
        self, vector_field: str | None, partition_names: list[str] | None = None
    ) -> tuple[Any, ...]:
        """Without vectors: whoever calls this counts rows."""
        found: tuple[Any, ...] = super().to_search_arrays(None, partition_names)
        return found

    def _vectors(self, name: str, places: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The vectors of these rows (batch, row); None where they are not all dense and there."""
        used, batch = np.unique(places[:, 0], return_inverse=True)
        columns = [self._insert_batches[one].column(name) for one in used.tolist()]
        column: Any = pa.chunked_array(columns).combine_chunks()
        if not pa.types.is_fixed_size_list(column.type) or column.null_count:
            return None
        starts = np.cumsum([0, *(len(one) for one in columns[:-1])])
        dense = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        return np.asarray(dense[starts[batch] + places[:, 1]], np.float32)

    def _rows_by_partition(self) -> Iterator[tuple[str, pa.Table]]:
        if not self._pk_index:
            return
        live = iter(self._pk_index.values())
        parts = iter(lambda: list(islice(live, AT_ONCE)), [])
        batch, row, _ = np.concatenate([np.array(part, np.int64) for part in parts]).T
        sizes = [one.num_rows for one in self._insert_batches]
        starts = np.cumsum([0, *sizes[:-1]])
        rows = pa.Table.from_batches(self._insert_batches).take(pa.array(starts[batch] + row))
        partitions = rows["_partition"]
        found = partitions.unique()
        for partition in found:
            own = rows if len(found) == 1 else rows.filter(pc.equal(partitions, partition))
            yield partition.as_py(), own.select(self._data_schema.names).cast(self._data_schema)
