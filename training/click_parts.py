"""Files of cached clicks: Parquet, sorted by user, so that one user's clicks are found quickly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.click import Click
from encoder.window import NEVER

USER, ITEM, TIMESTAMP = "user_id", "item_id", "timestamp"
_COLUMNS: Final[dict[str, Any]] = {USER: pa.string(), ITEM: pa.string(), TIMESTAMP: pa.int64()}
SCHEMA: Final = pa.schema(_COLUMNS)
_GROUP_ROWS: Final = 65_536


def as_table(clicks: Sequence[Click]) -> pa.Table:
    """Clicks in columns."""
    columns = [
        pa.array([click.user_id for click in clicks], pa.string()),
        pa.array([click.item_id for click in clicks], pa.string()),
        pa.array([click.timestamp_ms for click in clicks], pa.int64()),
    ]
    return pa.table(columns, schema=SCHEMA)


def write_part(path: Path, clicks: pa.Table) -> str:
    """Write clicks, sorted by user, so that they survive a loss of power; returns the sha256."""
    pq.write_table(clicks.sort_by(USER), path, row_group_size=_GROUP_ROWS, compression="zstd")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """Of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pseudonym(user_id: str) -> str:
    """What an erased user is remembered by; the id itself is not kept."""
    return hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()


def forget_pseudonyms(clicks: pa.Table, erased: Mapping[str, int]) -> pa.Table:
    """Without the clicks up to the time of their user's erasure, in ms, by pseudonym."""
    if not erased or not len(clicks):
        return clicks
    column: Any = pc.dictionary_encode(clicks.column(USER)).unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    users = column.dictionary.to_pylist()
    marks = np.array([erased.get(pseudonym(user), NEVER) for user in users], np.int64)
    codes = column.indices.to_numpy(zero_copy_only=False)
    times = clicks.column(TIMESTAMP).to_numpy()
    return clicks.filter(pa.array(times > marks[codes]))


class Forgotten:
    """Users by id, each with the time up to which the clicks are to be forgotten, in ms."""

    def __init__(self, up_to_ms: Mapping[str, int]) -> None:
        self._users = sorted(up_to_ms)
        self._ids = pa.array(self._users, pa.string())
        self._marks = np.array([up_to_ms[user] for user in self._users] + [NEVER], np.int64)

    def in_part(self, path: Path) -> bool:
        """Whether a part holds a click to forget; reads only where such a user may be."""
        return any(self._rows(clicks).any() for clicks in _groups_with(path, self._users))

    def removed_from(self, clicks: pa.Table) -> pa.Table:
        """What is left."""
        return clicks.filter(pa.array(~self._rows(clicks)))

    def _rows(self, clicks: pa.Table) -> npt.NDArray[np.bool_]:
        found: Any = pc.index_in(clicks.column(USER), value_set=self._ids)
        marks = self._marks[pc.fill_null(found, -1).to_numpy()]  # -1 is the last: never
        rows: npt.NDArray[np.bool_] = clicks.column(TIMESTAMP).to_numpy() <= marks
        return rows


def times_of(path: Path, user_id: str) -> list[int]:
    """When a user's clicks in a part were, in ms.

    Raises:
        OSError, ArrowException: it cannot be read.
    """
    found: list[int] = []
    for clicks in _groups_with(path, [user_id]):
        own = clicks.filter(pc.field(USER) == user_id)
        found += own.column(TIMESTAMP).to_numpy().tolist()
    return found


def _groups_with(path: Path, user_ids: Sequence[str]) -> Iterator[pa.Table]:
    """Users and times of the row groups that clicks of some users may be in."""
    with pq.ParquetFile(path) as file:
        place = file.schema_arrow.names.index(USER)
        for group in range(file.num_row_groups):
            users: Any = file.metadata.row_group(group).column(place).statistics
            # UTF-8 sorts as its code points do.
            outside = (
                users is not None
                and users.has_min_max
                and not any(users.min <= user <= users.max for user in user_ids)
            )
            if not outside:
                yield file.read_row_group(group, [USER, TIMESTAMP])
