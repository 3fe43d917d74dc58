"""What Milvus Lite holds in memory, made a file of column by column.

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

Tables = dict[str, tuple[pa.Table | None, pa.Table | None]]
"""By partition of a collection: the rows, and the keys that were deleted; None where none are."""


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
