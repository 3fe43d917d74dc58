"""Moves rows of Milvus Lite's memory into files while others read and write.

The package empties its memory first and then writes the file, in which time nobody may read or
write (docs/decisions/0023-milvus-lite.md). Here a thread writes what was in memory at one moment,
and memory keeps it until the file is there: rows are never in neither, and those of the file leave
memory in one short step.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from milvus_lite.constants import ALL_PARTITIONS
from milvus_lite.engine import flush
from milvus_lite.storage import segment
from milvus_lite.storage.segment import Segment

from encoder.milvus_lite_memory import AT_ONCE, ColumnMemTable


class WrittenFile(NamedTuple):
    """Files of one partition that no manifest names yet; None where there was nothing for them.

    Attributes:
        deleted: what is in the file of deletions, by key the number of its last one.
        segment: the file of rows as readers have it.
    """

    partition: str
    rows_file: str | None
    deletions_file: str | None
    deleted: dict[Any, int]
    segment: Segment | None


class Move:
    """One move of rows, from `begin` until a collection takes its files over."""

    def __init__(self, frozen: ColumnMemTable, log: Any, files: Future[list[WrittenFile]]) -> None:
        """See `begin`."""
        self.frozen = frozen
        self.log = log  # that has what is moved
        self._files = files

    @classmethod
    def begin(cls, thread: Executor, memory: ColumnMemTable, log: Any, collection: Any) -> Move:
        """Begin to write what is in memory.

        Args:
            thread: that writes.
            memory: goes on being written to.
            log: that has all of it, and is written to no more.
            collection: whose it is.
        """
        frozen = memory.frozen()
        return cls(frozen, log, thread.submit(_write_files, frozen, collection))

    @property
    def ready(self) -> bool:
        """Whether `files` has an answer."""
        return self._files.done()

    def files(self) -> list[WrittenFile]:
        """What was written, once it is; raises what writing raised."""
        return self._files.result()

    def give_up(self) -> None:
        """Wait until nothing is written any more."""
        self._files.cancel()
        if not self._files.cancelled():
            self._files.exception()


def _write_files(frozen: ColumnMemTable, collection: Any) -> list[WrittenFile]:
    """What the package's `execute_flush` writes, and rows as its cache has them."""
    written = []
    for partition, (rows, deleted) in frozen.flush(collection._manifest.list_partitions()).items():
        if partition == ALL_PARTITIONS:
            continue
        folder = Path(collection.data_dir, "partitions", partition)
        rows_file = deletions_file = loaded = None
        if rows is not None and rows.num_rows:
            rows_file = flush.write_data_file(rows, str(folder), *lowest_and_highest(rows))
            loaded = segment_of(str(folder / rows_file), partition, rows, collection)
        numbers: dict[Any, int] = {}
        if deleted is not None and deleted.num_rows:
            bounds = lowest_and_highest(deleted)
            deletions_file = flush.write_delta_file(deleted, str(folder), *bounds)
            keys = _listed(deleted.column(collection._pk_name))
            numbers = dict(zip(keys, _listed(deleted.column("_seq")), strict=True))
        written.append(WrittenFile(partition, rows_file, deletions_file, numbers, loaded))
    return written


def segment_of(path: str, partition: str, rows: pa.Table, collection: Any) -> Segment:
    """What the package's `Segment.load` makes of a file, out of what was written into it."""
    vectors, valid = np.zeros((rows.num_rows, 0), np.float32), None
    if collection._vector_name is not None:
        vectors, valid = segment._extract_vector_array(rows.column(collection._vector_name))
    return Segment(
        file_path=path,
        partition=partition,
        pk_field=collection._pk_name,
        vector_field=collection._vector_name or "",
        pks=_listed(rows.column(collection._pk_name)),
        seqs=rows.column("_seq").to_numpy().astype(np.uint64),
        vectors=vectors,
        table=rows,
        vector_null_mask=valid,
    )


def _listed(column: Any) -> list[Any]:
    steps = range(0, len(column), AT_ONCE)
    return [value for start in steps for value in column.slice(start, AT_ONCE).to_pylist()]


def lowest_and_highest(table: pa.Table) -> tuple[int, int]:
    """Of the rows' numbers."""
    found: Any = pc.min_max(table["_seq"]).as_py()
    return found["min"], found["max"]
