"""A click log in columns, and where it comes from.

Held sorted by user, time and item, each click once: the order in which windows hold clicks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.errors import Misconfigured


class ClickLogError(Misconfigured):
    """These clicks cannot be read or trained on; the message names the file and the column."""


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a Parquet file hold a click; the first of each that the file has is read."""

    user: tuple[str, ...] = ("user_id", "user")
    item: tuple[str, ...] = ("item_id", "item")
    timestamp: tuple[str, ...] = ("timestamp", "timestamp_ms")


@dataclass(frozen=True)
class ClickLog:
    """C distinct clicks of U users on N items, sorted by user, timestamp and item.

    Attributes:
        user_ids: U ids, sorted.
        item_ids: N ids, sorted.
        users: int32 (C,), positions in `user_ids`.
        items: int32 (C,), positions in `item_ids`.
        timestamps_ms: int64 (C,), event times.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    timestamps_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_arrays(
        cls,
        users: Sequence[str] | pa.Array[Any] | pa.ChunkedArray[Any],
        items: Sequence[str] | pa.Array[Any] | pa.ChunkedArray[Any],
        timestamps_ms: Sequence[int] | npt.NDArray[np.int64],
    ) -> ClickLog:
        """Build a log from one user id, item id and timestamp per click, in any order.

        Repeated clicks (same user, item and timestamp) are kept once, as a window keeps them.

        Raises:
            ClickLogError: the columns differ in length, or an id is missing.
        """
        times = np.asarray(timestamps_ms, dtype=np.int64)
        if not len(users) == len(items) == len(times):
            raise ClickLogError(
                f"a click log needs as many users ({len(users)}) as items ({len(items)}) and "
                f"timestamps ({len(times)})"
            )
        user_ids, user_codes = _encode(users, "user")
        item_ids, item_codes = _encode(items, "item")
        order = np.lexsort((item_codes, times, user_codes))
        user_codes, item_codes, times = user_codes[order], item_codes[order], times[order]
        repeated = np.zeros(len(times), dtype=bool)
        repeated[1:] = (
            (user_codes[1:] == user_codes[:-1])
            & (item_codes[1:] == item_codes[:-1])
            & (times[1:] == times[:-1])
        )
        keep = ~repeated
        return cls(user_ids, item_ids, user_codes[keep], item_codes[keep], times[keep])

    @classmethod
    def from_parquet(
        cls,
        path: Path,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        columns: ColumnNames | None = None,
    ) -> ClickLog:
        """Read the clicks with `since_ms <= timestamp < until_ms` from a file, or all of a folder.

        Ids may be strings, integers or categories; timestamps integers (milliseconds) or of any
        timestamp type (UTC where it names no zone).

        Raises:
            ClickLogError: a file cannot be read, lacks a column, or a column holds something else
                or nothing.
        """
        parts = [file.read(since_ms, until_ms) for file in ClickFile.all_in(path, columns)]
        if len(parts) == 1:
            return cls.from_arrays(*parts[0])
        users, items, times = zip(*parts, strict=True)
        return cls.from_arrays(_joined(users), _joined(items), np.concatenate(times))

    def between(self, since_ms: int | None = None, until_ms: int | None = None) -> ClickLog:
        """The clicks with `since_ms <= timestamp < until_ms`, with their users and items only."""
        keep = np.ones(len(self), dtype=bool)
        if since_ms is not None:
            keep &= self.timestamps_ms >= since_ms
        if until_ms is not None:
            keep &= self.timestamps_ms < until_ms
        user_ids, users = _compact(self.user_ids, self.users[keep])
        item_ids, items = _compact(self.item_ids, self.items[keep])
        return ClickLog(user_ids, item_ids, users, items, self.timestamps_ms[keep])

    def cut_ms(self, share: float) -> int:
        """The time before which about `share` of the clicks lie; a moment's clicks stay together.

        Raises:
            ClickLogError: the log is empty.
        """
        if not len(self):
            raise ClickLogError("an empty click log has no time to cut at")
        times = np.sort(self.timestamps_ms)
        return int(times[min(int(share * len(times)), len(times) - 1)])


Columns = tuple["pa.ChunkedArray[Any]", "pa.ChunkedArray[Any]", npt.NDArray[np.int64]]
"""Users, items and timestamps in milliseconds."""


@dataclass(frozen=True)
class ClickFile:
    """A Parquet file of clicks.

    Attributes:
        path: where it is.
        user: the column that is read as the user's id.
        item: as the item's.
        timestamp: as the time.
        rows: how many it has.
    """

    path: Path
    user: str
    item: str
    timestamp: str
    rows: int

    @classmethod
    def all_in(cls, path: Path, columns: ColumnNames | None = None) -> list[ClickFile]:
        """The file itself, or every `*.parquet` in a folder and below it, by path.

        Raises:
            ClickLogError: there is none, or one cannot be read or lacks a column.
        """
        if not path.is_dir():
            return [cls._of(path, columns or ColumnNames())]
        paths = sorted(file for file in path.rglob("*.parquet") if file.is_file())
        if not paths:
            raise ClickLogError(f"{path} holds no file *.parquet; name a folder that does")
        return [cls._of(file, columns or ColumnNames()) for file in paths]

    @classmethod
    def _of(cls, path: Path, names: ColumnNames) -> ClickFile:
        try:
            with pq.ParquetFile(path) as file:
                rows, available = file.metadata.num_rows, file.schema_arrow.names
        except FileNotFoundError as error:
            raise ClickLogError(f"{path} does not exist; name a Parquet file of clicks") from error
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
        user, item, timestamp = (
            _present(path, available, wanted)
            for wanted in (names.user, names.item, names.timestamp)
        )
        return cls(path, user, item, timestamp, rows)

    def read(self, since_ms: int | None = None, until_ms: int | None = None) -> Columns:
        """The clicks with `since_ms <= timestamp < until_ms`, at once."""
        try:
            table = pq.read_table(self.path, columns=self._names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, error) from error
        return self._clicks(table, 0, since_ms, until_ms)

    def batches(self, rows: int, since_ms: int | None = None) -> Iterator[Columns]:
        """The same, at most so many rows at a time; less than a row group is held."""
        first = 0
        with pq.ParquetFile(self.path) as file:
            batches = file.iter_batches(rows, columns=self._names)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise _unreadable(self.path, error) from error
                if batch is None:
                    return
                yield self._clicks(pa.Table.from_batches([batch]), first, since_ms, None)
                first += len(batch)

    @property
    def _names(self) -> list[str]:
        return [self.user, self.item, self.timestamp]

    def _clicks(
        self, table: pa.Table, first: int, since_ms: int | None, until_ms: int | None
    ) -> Columns:
        for name in self._names:
            if missing := table.column(name).null_count:
                where = f"{first:,} to {first + len(table) - 1:,}"
                raise ClickLogError(
                    f"{self.path}: column {name} is empty in {missing} rows, among rows {where}"
                )
        times = _milliseconds(self.path, self.timestamp, table.column(self.timestamp))
        keep = np.ones(len(times), dtype=bool)
        if since_ms is not None:
            keep &= times >= since_ms
        if until_ms is not None:
            keep &= times < until_ms
        chosen = table.filter(pa.array(keep))
        return (
            _strings(self.path, self.user, chosen.column(self.user)),
            _strings(self.path, self.item, chosen.column(self.item)),
            times[keep],
        )


def _unreadable(path: Path, error: Exception) -> ClickLogError:
    return ClickLogError(f"{path} cannot be read as Parquet: {error}")


def _joined(columns: Sequence[pa.ChunkedArray[Any]]) -> pa.ChunkedArray[Any]:
    """Columns of ids, which may be strings in one file and categories in the next."""
    chunks: list[Any] = []
    for column in columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        chunks += column.cast(pa.large_string()).chunks
    return pa.chunked_array(chunks, pa.large_string())


def _encode(
    values: Sequence[str] | pa.Array[Any] | pa.ChunkedArray[Any], role: str
) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Ids in order, and each value's position among them."""
    column: Any = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if not isinstance(column, pa.ChunkedArray):
        column = pa.chunked_array([column])
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if column.null_count:
        raise ClickLogError(f"{column.null_count} clicks have no {role}")
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    column = column.unify_dictionaries().combine_chunks()
    ids = np.array(column.dictionary.to_pylist(), dtype=np.object_)
    codes = column.indices.to_numpy(zero_copy_only=False)
    used = np.unique(codes)  # a filtered category keeps values that no row has
    order = used[np.argsort(ids[used], kind="stable")]
    place = np.zeros(len(ids), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return [str(value) for value in ids[order]], place[codes]


def _compact(
    ids: list[str], codes: npt.NDArray[np.int32]
) -> tuple[list[str], npt.NDArray[np.int32]]:
    used, compact = np.unique(codes, return_inverse=True)
    return [ids[code] for code in used], compact.astype(np.int32)


def _present(path: Path, available: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in available:
            return name
    raise ClickLogError(
        f"{path} has no column {' or '.join(wanted)}; it has {', '.join(available)}"
    )


def _strings(path: Path, name: str, column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ClickLogError(f"{path}: column {name} holds {kind}, but ids are strings or integers")
    return column


def _milliseconds(path: Path, name: str, column: pa.ChunkedArray[Any]) -> npt.NDArray[np.int64]:
    if pa.types.is_timestamp(column.type):
        # Not a checked cast: times finer than a millisecond are cut to it.
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise ClickLogError(
            f"{path}: column {name} holds {column.type}, but a timestamp is an integer in "
            "milliseconds or of a timestamp type"
        )
    return column.cast(pa.int64()).to_numpy()
