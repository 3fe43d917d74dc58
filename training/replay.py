"""The newest clicks of a log, each with what was known just before it.

M moments of clicks to predict, C clicks, L window length, N items.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from training.click_log import ClickLog
from training.inference import encode_windows, item_vectors
from training.mixing import Clicks, Known
from training.model import Mind
from training.preset import TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences

POPULAR_DAYS: Final = 7
DAY_MS: Final = 86_400_000
_KEY: Final = 1 << 42  # more than any time in ms before the year 2109

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Replay:
    """The newest clicks of a log, by moment, and what was known before each.

    Attributes:
        log: all clicks.
        split_ms: the first event time that is predicted.
        begins: int64 (M,), position in the log of each moment's first click, ordered by time.
        ends: int64 (M,), position after its last.
        firsts: int64 (M,), position of its user's first click.
    """

    log: ClickLog
    split_ms: int
    begins: Rows
    ends: Rows
    firsts: Rows

    @classmethod
    def of(cls, log: ClickLog, trained_share: float) -> "Replay":
        """Split a log by time."""
        return cls.since(log, int(np.sort(log.timestamps_ms)[int(len(log) * trained_share)]))

    @classmethod
    def since(cls, log: ClickLog, split_ms: int) -> "Replay":
        """Split a log at a time."""
        times = log.timestamps_ms
        changes = (np.diff(log.users, prepend=-1) != 0) | (np.diff(times, prepend=-1) != 0)
        begins = np.flatnonzero(changes)
        ends = np.append(begins[1:], len(log))
        order = np.argsort(times[begins], kind="stable")
        order = order[times[begins[order]] >= split_ms]
        firsts = np.searchsorted(log.users, log.users[begins[order]])
        return cls(log, split_ms, begins[order], ends[order], firsts)

    def sample(self, most: int) -> "Replay":
        """At most so many of the moments, evenly spaced."""
        size = len(self.begins)
        kept = np.unique(np.linspace(0, size - 1, min(most, size)).astype(np.int64))
        return dataclasses.replace(
            self, begins=self.begins[kept], ends=self.ends[kept], firsts=self.firsts[kept]
        )

    @property
    def times(self) -> Rows:
        """When each moment was: int64 (M,), ms."""
        return self.log.timestamps_ms[self.begins]

    @property
    def past(self) -> ClickLog:
        """What the model learns from."""
        return self.log.between(until_ms=self.split_ms)

    def known_at(self, instants: Rows) -> Rows:
        """Position after the last click that each moment's user had before an instant: (M,).

        Args:
            instants: int64 (M,), ms, none after its moment.
        """
        keys = self.log.users.astype(np.int64) * _KEY + self.log.timestamps_ms
        return np.searchsorted(keys, self.log.users[self.begins].astype(np.int64) * _KEY + instants)

    def clicks(self) -> Iterator[tuple[int, int, bool]]:
        """Moment, item and whether its user had it before, for each click to predict."""
        items = self.log.items
        for moment, (first, begin, end) in enumerate(
            zip(self.firsts.tolist(), self.begins.tolist(), self.ends.tolist(), strict=True)
        ):
            before = set(items[first:begin].tolist())
            for item in items[begin:end].tolist():
                yield moment, item, item in before


@dataclass(frozen=True)
class Learned:
    """A model of what came before a replay's split.

    Attributes:
        model: trained.
        config: with which it was.
        sequences: from which it was.
        item_ids: those of rows 1..N of its table.
        table: float32 (N+1, D).
    """

    model: Mind
    config: TrainingConfig
    sequences: Sequences
    item_ids: list[str]
    table: npt.NDArray[np.float32]


def learn(replay: Replay, config: TrainingConfig) -> Learned:
    """Train on the clicks before the split."""
    past = replay.past
    learned = Sequences.from_log(past, past.item_ids)
    model, config = trained_model(learned, len(past.item_ids), config)
    return Learned(model, config, learned, past.item_ids, item_vectors(model))


def clicks_at(replay: Replay, codes: Rows) -> Clicks:
    """The clicks of all moments, by rows as `known_before` numbers them."""
    place = {code: row for row, code in enumerate(codes.tolist())}
    found = [(moment, place[item]) for moment, item, _ in replay.clicks()]
    moments, rows = np.array(found, np.int64).reshape(-1, 2).T
    return Clicks(moments, rows)


def known_before(replay: Replay, learned: Learned, clicks: int) -> tuple[Known, Rows]:
    """What is known just before each moment, of popularity at the midnight (UTC) before it.

    Items that are new since the model was trained have no vector, yet may be popular.

    Args:
        replay: its moments.
        learned: what interests and items are from.
        clicks: so many of the newest are the user's own items.

    Returns:
        It, and the positions in the log's `item_ids` of its rows; -1 for row 0.
    """
    log, config = replay.log, learned.config
    known = set(learned.item_ids)
    item_ids = [*learned.item_ids, *(item for item in log.item_ids if item not in known)]
    table = np.zeros((len(item_ids) + 1, learned.table.shape[1]), np.float32)
    table[: len(learned.table)] = learned.table
    everything = Sequences.from_log(log, learned.item_ids)
    vectors, counts = encode_windows(
        learned.model,
        learned.table,
        everything.windows_before(replay.begins, config.window_length),
        config,
    )
    codes = codes_of(log, item_ids)
    nights, at = np.unique(replay.times // DAY_MS * DAY_MS, return_inverse=True)
    popular = np.log1p(clicks_of_days(log, nights, POPULAR_DAYS)).astype(np.float32)
    return Known(
        table=table,
        vectors=vectors,
        counts=counts,
        windows=Sequences.from_log(log, item_ids).windows_before(replay.begins, clicks),
        popularity=np.where(codes < 0, np.float32(0), popular[:, codes]),
        at=at,
    ), codes


def clicks_of_days(log: ClickLog, instants: Rows, days: int) -> Rows:
    """Clicks of each item in the days before each of P instants: int64 (P, items of the log)."""
    order = np.argsort(log.timestamps_ms, kind="stable")
    times, items = log.timestamps_ms[order], log.items[order]
    begins, ends = (np.searchsorted(times, instants - ms) for ms in (days * DAY_MS, 0))
    counts = [
        np.bincount(items[begin:end], minlength=len(log.item_ids))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]
    return np.array(counts, np.int64).reshape(len(instants), len(log.item_ids))


def codes_of(log: ClickLog, item_ids: list[str]) -> Rows:
    """Positions in the log's `item_ids` of rows 1..N; -1 for row 0, which is no item."""
    code_of = {item: code for code, item in enumerate(log.item_ids)}
    return np.array([-1, *(code_of[item] for item in item_ids)])
