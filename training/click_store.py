"""A click log larger than memory: sorted on disk, part by part.

What is in memory at once is the ids of the items, a part of the clicks, and nothing per user.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.click_log import ClickFile, ClickLog, ClickLogError, ColumnNames
from training.evaluation import HeldOut
from training.lesson import Lesson
from training.preset import TrainingConfig
from training.sequence_store import (
    BLOCKS_TOGETHER,
    ITEMS_FILE,
    LENGTHS_FILE,
    Block,
    StoredSequences,
)

MEASURED_USERS: Final = 20_000
_ROWS_AT_ONCE: Final = 65_536
_BINS: Final = 1 << 20

# A user is 128 bits of a hash of the id. Among a billion users, the chance that two of them are
# taken for one is 10^-21.
_CLICK: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("time", "<i8"), ("item", "<i4")])
Clicks = npt.NDArray[np.void]
Ints = npt.NDArray[np.int64]


def read_clicks(
    path: Path, *, folder: Path, buffer_clicks: int, since_ms: int | None = None
) -> ClickLog | ClickStore:
    """The clicks of a Parquet file, or of all in a folder; in memory if so many rows fit a buffer.

    Args:
        path: of the file or folder.
        folder: where to put them if they do not fit; emptied first.
        buffer_clicks: about the most clicks to hold in memory; all of one user's are held together.
        since_ms: only clicks from this time on.

    Raises:
        ClickLogError: a file cannot be read, or is not one of clicks; names file and column.
    """
    if sum(file.rows for file in ClickFile.all_in(path)) <= buffer_clicks:
        return ClickLog.from_parquet(path, since_ms=since_ms)
    return ClickStore.from_parquet(
        path, folder=folder, buffer_clicks=buffer_clicks, since_ms=since_ms
    )


@dataclass(frozen=True)
class ClickStore:
    """Distinct clicks in files of whole users, each sorted by user, timestamp and item.

    Attributes:
        folder: holds them.
        parts: how many files; which user is in which is decided by the hash of the id.
        item_ids: N ids, sorted; a click's item is a position among them.
        clicks: how many in all.
        oldest_ms: time of the first click.
        newest_ms: of the last.
    """

    folder: Path
    parts: int
    item_ids: list[str]
    clicks: int
    oldest_ms: int
    newest_ms: int

    @classmethod
    def from_parquet(
        cls,
        path: Path,
        *,
        folder: Path,
        buffer_clicks: int,
        since_ms: int | None = None,
        columns: ColumnNames | None = None,
    ) -> ClickStore:
        """See `read_clicks`. Takes about 32 bytes a click in `folder`, which the caller deletes."""
        files = ClickFile.all_in(path, columns)
        rows = sum(file.rows for file in files)
        part_clicks = max(1, buffer_clicks // BLOCKS_TOGETHER)
        spill = _Spill(folder, max(1, -(-rows // part_clicks)), part_clicks)
        places: dict[str, int] = {}
        for file in files:
            for users, items, times in file.batches(_ROWS_AT_ONCE, since_ms):
                if not len(times):
                    continue
                clicks = np.empty(len(times), _CLICK)
                clicks["high"], clicks["low"] = _hashes(users)
                clicks["item"] = _places(items, places)
                clicks["time"] = times
                spill.add(clicks)
        spill.write()
        ids = list(places)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        rank = np.zeros(len(ids), np.int32)
        rank[order] = np.arange(len(ids), dtype=np.int32)
        distinct = 0
        oldest, newest = [], []
        for part in range(spill.parts):
            clicks = _sorted(spill.read(part), rank)
            clicks.tofile(spill.path(part))
            if len(clicks):
                distinct += len(clicks)
                oldest.append(int(clicks["time"].min()))
                newest.append(int(clicks["time"].max()))
        if not distinct:
            raise ClickLogError("the click log is empty; there is nothing to train on")
        return cls(
            folder=folder,
            parts=spill.parts,
            item_ids=[ids[place] for place in order],
            clicks=distinct,
            oldest_ms=min(oldest),
            newest_ms=max(newest),
        )

    def _each(self) -> Iterator[Clicks]:
        for part in range(self.parts):
            yield np.fromfile(_path(self.folder, part), _CLICK)

    def sample(self) -> ClickLog:
        """The clicks of some users, drawn evenly: one file's. Their ids are the hashes."""
        clicks = next(self._each())
        ids = [f"{high:016x}{low:016x}" for high, low in clicks[["high", "low"]].tolist()]
        items = [self.item_ids[item] for item in clicks["item"].tolist()]
        return ClickLog.from_arrays(ids, items, clicks["time"])

    def cut_ms(self, share: float) -> int:
        """As `ClickLog.cut_ms`, exactly; reads all clicks for each 20 bits of the time range."""
        wanted = min(int(share * self.clicks), self.clicks - 1)
        low, high = self.oldest_ms, self.newest_ms
        while low < high:
            width = (high - low) // _BINS + 1
            counts = np.zeros(_BINS, np.int64)
            for clicks in self._each():
                times = clicks["time"]
                inside = times[(times >= low) & (times <= high)]
                counts += np.bincount((inside - low) // width, minlength=_BINS)
            reached = np.cumsum(counts)
            found = int(np.searchsorted(reached, wanted, side="right"))
            wanted -= int(reached[found - 1]) if found else 0
            low, high = low + found * width, min(high, low + (found + 1) * width - 1)
        return low

    def lesson(self, config: TrainingConfig) -> Lesson:
        """Split by time as `training.trainer.hold_out` does, and store the sequences.

        Where more users than `MEASURED_USERS` have held-out clicks, those with the lowest hashes
        are kept: a sample drawn evenly, the same each time.

        Raises:
            ClickLogError: there is nothing to learn from.
        """
        cut = self.cut_ms(1 - config.holdout) if config.holdout else self.newest_ms + 1
        if cut == self.oldest_ms:
            cut = self.newest_ms + 1
        counts = np.zeros(len(self.item_ids), np.int64)
        sample = _HeldOutSample(config.window_length)
        blocks = []
        first_click = first_user = 0
        until_ms = self.oldest_ms
        with (
            (self.folder / ITEMS_FILE).open("wb") as items_file,
            (self.folder / LENGTHS_FILE).open("wb") as lengths_file,
        ):
            for clicks in self._each():
                past = clicks["time"] < cut
                if not past.any():
                    continue
                starts = _starts(clicks)
                before = np.add.reduceat(past, starts, dtype=np.int64)
                items = clicks["item"][past]
                lengths = before[before > 0]
                items.tofile(items_file)
                lengths.tofile(lengths_file)
                counts += np.bincount(items, minlength=len(counts))
                until_ms = max(until_ms, int(clicks["time"][past].max()))
                blocks.append(Block(first_click, len(items), first_user, len(lengths)))
                first_click += len(items)
                first_user += len(lengths)
                sample.add(clicks, starts, before)
        known = np.flatnonzero(counts >= config.min_item_clicks)
        table = np.zeros(len(counts), np.int32)
        table[known] = np.arange(1, len(known) + 1, dtype=np.int32)
        return Lesson(
            item_ids=[self.item_ids[place] for place in known],
            sequences=StoredSequences(self.folder, blocks, table),
            held_out=sample.held_out(table),
            since_ms=self.oldest_ms,
            until_ms=until_ms,
            clicks=first_click,
            users=first_user,
        )


class _Spill:
    """Clicks on their way into parts; so many are held until they are written."""

    def __init__(self, folder: Path, parts: int, most: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.parts = parts
        self._folder = folder
        self._most = most
        self._held: list[Clicks] = []
        for part in range(parts):
            self.path(part).touch()

    def path(self, part: int) -> Path:
        return _path(self._folder, part)

    def read(self, part: int) -> Clicks:
        return np.fromfile(self.path(part), _CLICK)

    def add(self, clicks: Clicks) -> None:
        self._held.append(clicks)
        if sum(map(len, self._held)) >= self._most:
            self.write()

    def write(self) -> None:
        """Put what is held into the parts."""
        if not self._held:
            return
        clicks = np.concatenate(self._held)
        self._held = []
        parts = clicks["high"] % np.uint64(self.parts)
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts.astype(np.int64), minlength=self.parts))
        for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if start < end:
                with self.path(part).open("ab") as file:
                    clicks[order[start:end]].tofile(file)


class _HeldOutSample:
    """Users with clicks on both sides of the cut, those with the lowest hashes."""

    def __init__(self, window_length: int) -> None:
        self._length = window_length
        self._hashes = np.zeros(0, np.uint64)  # ascending
        self._windows = np.zeros((0, window_length), np.int32)  # places of items, -1 for none
        self._targets: list[npt.NDArray[np.int32]] = []

    def add(self, clicks: Clicks, starts: Ints, before: Ints) -> None:
        """Of a part, where its users start and how many of each one's clicks are before the cut."""
        ends = np.append(starts[1:], len(clicks))
        cuts = starts + before
        eligible = (before > 0) & (cuts < ends)
        if len(self._hashes) == MEASURED_USERS:
            eligible &= clicks["low"][starts] < self._hashes[-1]
        users = np.flatnonzero(eligible)
        hashes = clicks["low"][starts[users]]
        best = np.argsort(hashes, kind="stable")[:MEASURED_USERS]
        users, hashes = users[best], hashes[best]
        index = np.maximum(starts, cuts - self._length)[users, None] + np.arange(self._length)
        inside = index < cuts[users, None]
        windows = np.full(index.shape, -1, np.int32)
        windows[inside] = clicks["item"][index[inside]]
        targets = [
            np.unique(clicks["item"][cut:end])
            for cut, end in zip(cuts[users], ends[users], strict=True)
        ]
        hashes = np.concatenate([self._hashes, hashes])
        windows = np.concatenate([self._windows, windows])
        targets = self._targets + targets
        best = np.argsort(hashes, kind="stable")[:MEASURED_USERS]
        self._hashes, self._windows = hashes[best], windows[best]
        self._targets = [targets[place] for place in best]

    def held_out(self, table: npt.NDArray[np.int32]) -> HeldOut:
        """With rows in place of items, as `HeldOut.split` has them."""
        windows = np.where(self._windows >= 0, table[self._windows], 0).astype(np.int64)
        real: npt.NDArray[np.bool_] = np.asarray(windows.any(axis=1))
        targets = [
            frozenset(np.where(table[places] > 0, table[places], -1 - places).tolist())
            for places, fine in zip(self._targets, real, strict=True)
            if fine
        ]
        return HeldOut(windows[real], targets)


def _path(folder: Path, part: int) -> Path:
    return folder / f"part_{part:05}.clicks"


def _hashes(users: pa.ChunkedArray[Any]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    ids, codes = _distinct(users)
    digests = b"".join(blake2b(one.encode(), digest_size=16).digest() for one in ids)
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)[codes]
    return halves[:, 0], halves[:, 1]


def _places(items: pa.ChunkedArray[Any], places: dict[str, int]) -> Ints:
    """Each item's place in order of first appearance; new ones are added."""
    ids, codes = _distinct(items)
    found = [places.setdefault(one, len(places)) for one in ids]
    return np.array(found, np.int64)[codes]


def _distinct(column: pa.ChunkedArray[Any]) -> tuple[list[str], Ints]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # which leaves out what no row here has
    encoded: Any = pc.dictionary_encode(column.combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def _sorted(clicks: Clicks, rank: npt.NDArray[np.int32]) -> Clicks:
    """By user, time and item, each once; items by their rank among the ids."""
    clicks["item"] = rank[clicks["item"]]
    clicks = clicks[np.lexsort((clicks["item"], clicks["time"], clicks["low"], clicks["high"]))]
    keep = np.ones(len(clicks), bool)
    keep[1:] = clicks[1:] != clicks[:-1]
    return clicks[keep]


def _starts(clicks: Clicks) -> Ints:
    """Where each user's clicks start."""
    first = np.ones(len(clicks), bool)
    first[1:] = (clicks["high"][1:] != clicks["high"][:-1]) | (
        clicks["low"][1:] != clicks["low"][:-1]
    )
    return np.flatnonzero(first)
