"""Merges files of Milvus Lite into fewer ones with live rows only, while others read and write.

The package merges files of 200,000 rows together at most, and what gathers in memory is more than
that in one file: nothing is ever merged then, and as Lite holds its files in memory, so is every
version of every row that was ever written. And it merges under the lock that readers take
(docs/decisions/0023-milvus-lite.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from milvus_lite.engine.compaction import CompactionManager
from milvus_lite.storage.data_file import parse_seq_range, write_data_file
from milvus_lite.storage.delta_index import DeltaIndex
from milvus_lite.storage.segment import Segment
from milvus_lite.storage.snapshots import snapshot_references

from encoder.milvus_lite_files import lowest_and_highest, segment_of

_FILES: Final = 4  # that many of similar sizes are merged

Segments = dict[tuple[str, str], Segment]
"""By partition and by the name of the file in it."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What is to be merged, as readers had it at one moment.

    Attributes:
        files: to be merged, of one partition.
        others: all others of the collection.
        deleted: by key, the number of its last deletion; does not change.
    """

    partition: str
    files: Segments
    others: Segments
    deleted: dict[Any, int]

    @classmethod
    def due(cls, segments: Segments, deleted: dict[Any, int]) -> Merge | None:
        """The first that is due, if any is: see `newest_alike`."""
        for partition in sorted({partition for partition, _ in segments}):
            own = {file: one for file, one in segments.items() if file[0] == partition}
            files = newest_alike(own)
            if files:
                others = {file: one for file, one in segments.items() if file not in files}
                return cls(partition, files, others, deleted)
        return None

    def rows(self) -> pa.Table:
        """The rows of the files that no other of their rows replaces and no deletion deletes."""
        key = next(iter(self.files.values()))._pk_field
        rows = pa.concat_tables([one.table for one in self.files.values()])
        newest = rows.select([key, "_seq"]).group_by(key).aggregate([("_seq", "max")])
        rows = rows.filter(pc.is_in(rows["_seq"], value_set=newest["_seq_max"]))
        if self.deleted:
            keys = pa.array(list(self.deleted), rows.schema.field(key).type)
            numbers = np.fromiter(self.deleted.values(), np.int64, len(self.deleted))
            place = pc.fill_null(pc.index_in(rows[key], value_set=keys), -1).to_numpy()
            own = rows["_seq"].to_numpy().astype(np.int64)
            rows = rows.filter(pa.array((place < 0) | (numbers[place] <= own)))
        return rows.combine_chunks()

    def deletions_left(self) -> dict[Any, int]:
        """Those that rows of other files need."""
        return {
            key: number
            for key, number in self.deleted.items()
            if any(
                (row := one.pk_to_row.get(key)) is not None and int(one.seqs[row]) < number
                for one in self.others.values()
            )
        }


def newest_alike(segments: Segments) -> Segments:
    """The newest files that are worth merging: at least four, each at most twice all newer ones.

    So files are few, and a row is written again as often as what is newer has doubled.
    """
    by_age = sorted(segments.items(), key=lambda item: -int(item[1].seqs.max(initial=0)))
    found: Segments = {}
    rows = 0
    for file, one in by_age:
        if found and one.num_rows > 2 * rows:
            break
        found[file] = one
        rows += one.num_rows
    return found if len(found) >= _FILES else {}


def merge_files(collection: Any) -> bool:
    """Make one merge that is due; tells whether there was one. For one thread at a time."""
    with collection._maintenance_lock:
        segments: Segments = dict(collection._segment_cache)
        merge = Merge.due(segments, dict(collection._delta_index._map))
    if merge is None or collection._bg_closed:
        return False
    folder = Path(collection.data_dir, "partitions", merge.partition)
    rows = merge.rows()
    file, loaded = None, None
    if rows.num_rows:
        bounds = lowest_and_highest(rows)
        bounds = CompactionManager._pick_unique_seq_range(str(folder), *bounds)
        file = write_data_file(rows, str(folder), *bounds)
        loaded = segment_of(str(folder / file), merge.partition, rows, collection)
    left = merge.deletions_left()
    with collection._maintenance_lock:
        if not merge.files.keys() <= collection._segment_cache.keys():  # the partition was dropped
            if file is not None:
                (folder / file).unlink(missing_ok=True)
            return False
        since = {
            key: number
            for key, number in collection._delta_index._map.items()
            if merge.deleted.get(key) != number
        }
        deleted = DeltaIndex(collection._pk_name)  # readers may have the one before
        deleted._map = left | since
        manifest = collection._manifest
        names = [name for _, name in merge.files]
        manifest.remove_data_files(merge.partition, names)
        if file is not None:
            manifest.add_data_file(merge.partition, file)
        unneeded = _unneeded(manifest.get_all_delta_files(), list(deleted._map.values()))
        for partition, deletions in unneeded.items():
            manifest.remove_delta_files(partition, deletions)
        manifest.save()
        for one in merge.files:
            del collection._segment_cache[one]
        if file is not None:
            collection._segment_cache[merge.partition, file] = loaded
        collection._delta_index = deleted
    _remove(collection.data_dir, {merge.partition: names})
    _remove(collection.data_dir, unneeded)
    return True


def _unneeded(files: dict[str, list[str]], numbers: Sequence[int]) -> dict[str, list[str]]:
    """The files of deletions, by partition, that have none of these."""
    ordered = np.sort(np.array(numbers, np.int64))

    def is_needed(name: str) -> bool:
        lowest, highest = parse_seq_range(name)
        first, after = np.searchsorted(ordered, [lowest, highest + 1])
        return bool(first < after)

    return {partition: [n for n in names if not is_needed(n)] for partition, names in files.items()}


def _remove(data_dir: str, files: dict[str, list[str]]) -> None:
    """Delete files that the manifest names no longer, unless a snapshot does."""
    rows, deletions, _ = snapshot_references(data_dir)
    for partition, names in files.items():
        for name in {*names} - rows.get(partition, set()) - deletions.get(partition, set()):
            with suppress(OSError):  # removed when the folder is opened again
                Path(data_dir, "partitions", partition, name).unlink()
