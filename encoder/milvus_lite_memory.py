"""What Milvus Lite holds in memory, made a file of and searched column by column.

The package goes from cell to cell in Python, which for the 128 MB that gather is two seconds in
which nobody reads or writes (docs/decisions/0023-milvus-lite.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from milvus_lite.storage.memtable import MemTable
from numpy.typing import NDArray

Tables = dict[str, tuple[pa.Table | None, pa.Table | None]]
"""By partition of a collection: the rows, and the keys that were deleted; None where none are."""

Snapshot = tuple[
    list[Any], NDArray[np.uint64], NDArray[np.float32], list[tuple[int, int]], pa.Table | None
]
"""Keys, numbers (n,) and vectors (n, D) of n rows, where each is, and their table if asked for."""


class ColumnMemTable(MemTable):  # type: ignore[misc]  # the package has no types
    """The package's in all else."""

    _pk_index: dict[Any, tuple[int, int, int]]  # number of the batch, of the row in it, and `_seq`

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
        batch, row, _ = np.array(list(self._pk_index.values()), np.int64).T
        sizes = [one.num_rows for one in self._insert_batches]
        starts = np.cumsum([0, *sizes[:-1]])
        rows = pa.Table.from_batches(self._insert_batches).take(pa.array(starts[batch] + row))
        partitions = rows["_partition"]
        for partition in partitions.unique():
            own = rows.filter(pc.equal(partitions, partition))
            yield partition.as_py(), own.select(self._data_schema.names).cast(self._data_schema)
