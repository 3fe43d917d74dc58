"""Predict, then learn: `python -m training.prequential [--data FILE] [--preset P] [--write FILE]`.

A model learns from the first 80 % of a click log by time. Each later click is predicted from what
was known just before it, then becomes known. A user's clicks of one moment are predicted together,
since nobody can tell their order. So the table says what it is worth to bring interests up to date
with every click rather than every hour, every night, or with the next release only.

M moments of clicks to predict, C clicks, L window length.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from training.click_log import ClickLog
from training.evaluation import CUTS, search
from training.experiments import DEFAULT_DATA
from training.inference import encode_windows, item_vectors
from training.item_knn import ItemKnn
from training.mixing import PARTS, Clicks, Known, Mix, fitted
from training.mixing import found as best_of
from training.model import Mind
from training.preset import PRESETS, TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences

TRAINED_SHARE: Final = 0.8
FITTED_SHARE: Final = 0.1
"""Newest part of what is learned from: the mixes are fitted on it, with a model of the rest."""
POPULAR_DAYS: Final = (7, 30)
REMEMBERED: Final = 200
"""Clicks of a longer window, of which the model reads the newest."""
MIXES: Final[tuple[tuple[str, ...], ...]] = (
    ("interests", "popular"),
    ("own", "popular"),
    ("interests", "own"),
    PARTS,
)
_NAMES: Final = {"interests": "interests", "own": "own items", "popular": "popularity"}
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_TOP: Final = max(CUTS)
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
    def of(cls, log: ClickLog, trained_share: float = TRAINED_SHARE) -> "Replay":
        """Split a log by time."""
        times = log.timestamps_ms
        split_ms = int(np.sort(times)[int(len(log) * trained_share)])
        changes = (np.diff(log.users, prepend=-1) != 0) | (np.diff(times, prepend=-1) != 0)
        begins = np.flatnonzero(changes)
        ends = np.append(begins[1:], len(log))
        order = np.argsort(times[begins], kind="stable")
        order = order[times[begins[order]] >= split_ms]
        firsts = np.searchsorted(log.users, log.users[begins[order]])
        return cls(log, split_ms, begins[order], ends[order], firsts)

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


def interests(replay: Replay, learned: Learned) -> dict[str, Rows]:
    """What a trained model finds, by how often interests are brought up to date: (M, 50) each.

    All hold positions in the log's `item_ids`, best first; -1 where nothing is found.
    """
    model, config, table = learned.model, learned.config, learned.table
    everything = Sequences.from_log(replay.log, learned.item_ids)
    codes = _codes(replay.log, learned.item_ids)
    found = {}
    times = replay.times
    for name, instants in {
        "interests, per click": times,
        "interests, hourly": times // _HOUR_MS * _HOUR_MS,
        "interests, nightly": times // _DAY_MS * _DAY_MS,
        "interests, frozen at release": np.full_like(times, replay.split_ms),
    }.items():
        known = replay.known_at(np.maximum(instants, replay.split_ms))
        windows = everything.windows_before(known, config.window_length)
        vectors, counts = encode_windows(model, table, windows, config)
        rows = search(vectors, counts, table, _TOP)
        found[name] = codes[np.maximum(rows, 0)]
    windows = everything.windows_before(replay.begins, config.window_length)
    rows = ItemKnn(learned.sequences, len(learned.item_ids)).search(windows, _TOP)
    found["item-kNN, per click"] = codes[np.maximum(rows, 0)]
    return found


def _codes(log: ClickLog, item_ids: list[str]) -> Rows:
    """Positions in the log's `item_ids` of rows 1..N; -1 for row 0, which is no item."""
    code_of = {item: code for code, item in enumerate(log.item_ids)}
    return np.array([-1, *(code_of[item] for item in item_ids)])


def mixed(replay: Replay, learned: Learned, config: TrainingConfig) -> "Mixed":
    """What is found by interests, own items and popularity together.

    Parameters are fitted on the newest clicks before the split, with a model that has not seen
    these. Own items are those of the model's window, and once more of a longer one.
    """
    earlier = Replay.of(replay.past, 1 - FITTED_SHARE)
    teacher = learn(earlier, config)
    short = learned.config.window_length
    found, mixes = {}, {}
    for length, ways in ((short, MIXES), (REMEMBERED, (PARTS,))):
        before, codes = known_before(earlier, teacher, length)
        place = {code: row for row, code in enumerate(codes.tolist())}
        moments, items, _ = zip(*earlier.clicks(), strict=True)
        wanted = Clicks(np.array(moments), np.array([place[item] for item in items]))
        now, codes = known_before(replay, learned, length)
        for parts in ways:
            name = " and ".join([", ".join(_NAMES[part] for part in parts[:-1]), _NAMES[parts[-1]]])
            name += ", mixed" if length == short else f", mixed, of {length} clicks"
            mixes[name] = fitted(before, wanted, parts)
            found[name] = codes[best_of(now, mixes[name], _TOP)]
    return Mixed(found, mixes)


@dataclass(frozen=True)
class Mixed:
    """What mixes find, as in `interests`, and their parameters, by name."""

    found: dict[str, Rows]
    mixes: dict[str, Mix]


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
    codes = _codes(log, item_ids)
    nights, at = np.unique(replay.times // _DAY_MS * _DAY_MS, return_inverse=True)
    popular = np.log1p(clicks_of_days(log, nights, POPULAR_DAYS[0])).astype(np.float32)
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
    begins, ends = (np.searchsorted(times, instants - ms) for ms in (days * _DAY_MS, 0))
    counts = [
        np.bincount(items[begin:end], minlength=len(log.item_ids))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]
    return np.array(counts, np.int64).reshape(len(instants), len(log.item_ids))


def recent_popularity(replay: Replay, days: int) -> Rows:
    """The items most clicked in the days before each moment: (M, 50)."""
    order = np.argsort(replay.log.timestamps_ms, kind="stable")
    times, items = replay.log.timestamps_ms[order], replay.log.items[order]
    counts = np.zeros(len(replay.log.item_ids))
    top = min(_TOP, len(counts))
    found = np.zeros((len(replay.begins), top), np.int64)
    since = until = 0
    for moment, at in enumerate(replay.times.tolist()):
        while until < len(times) and times[until] < at:
            counts[items[until]] += 1
            until += 1
        while times[since] < at - days * _DAY_MS:
            counts[items[since]] -= 1
            since += 1
        found[moment] = np.argsort(-counts, kind="stable")[:top]
    return found


def own_history_first(replay: Replay, others: Rows) -> Rows:
    """A user's own items, the most often clicked and of those the newest first, then others."""
    found = np.full_like(others, -1)
    for moment, (first, begin) in enumerate(
        zip(replay.firsts.tolist(), replay.begins.tolist(), strict=True)
    ):
        items = replay.log.items[first:begin]
        own, last, times = np.unique(items[::-1], return_index=True, return_counts=True)
        ranked = own[np.lexsort((last, -times))].tolist()
        more = [item for item in others[moment].tolist() if item >= 0 and item not in ranked]
        both = (ranked + more)[: others.shape[1]]
        found[moment, : len(both)] = both
    return found


@dataclass(frozen=True)
class Recalls:
    """Share of clicks whose item was among the best so many, for all of them and for some.

    `mixes` has the parameters of those that are mixes.
    """

    table: dict[str, dict[str, float]]
    shares: dict[str, float]
    mixes: dict[str, Mix] = field(default_factory=dict)


def recalls(replay: Replay, found: dict[str, Rows]) -> Recalls:
    """Recall of each way to recommend.

    Clicks of users without a click before the split, and on items without one, are counted among
    all and by themselves.
    """
    users_before = set(replay.past.user_ids)
    items_before = set(replay.past.item_ids)
    log = replay.log
    clicks = list(replay.clicks())
    moments = np.array([moment for moment, _, _ in clicks])
    items = np.array([item for _, item, _ in clicks])
    again = np.array([before for _, _, before in clicks])
    new_user = np.array([user not in users_before for user in log.user_ids])
    new_item = np.array([item not in items_before for item in log.item_ids])
    parts = {
        "all": np.ones(len(clicks), bool),
        "had before": again,
        "not had before": ~again,
        "new users": new_user[log.users[replay.begins[moments]]],
        "new items": new_item[items],
    }
    table: dict[str, dict[str, float]] = {}
    for name, best in found.items():
        hit = best[moments] == items[:, None]
        table[name] = {
            f"{part}, R@{cut}": float(hit[chosen, :cut].any(axis=1).mean()) if chosen.any() else 0.0
            for part, chosen in parts.items()
            for cut in CUTS
        }
    return Recalls(table, {part: float(chosen.mean()) for part, chosen in parts.items()})


def evaluate(log: ClickLog, config: TrainingConfig) -> Recalls:
    """Recalls of interests, and of what needs no model."""
    replay = Replay.of(log)
    learned = learn(replay, config)
    found = interests(replay, learned)
    popular = {days: recent_popularity(replay, days) for days in POPULAR_DAYS}
    for days, best in popular.items():
        found[f"popularity of {days} days"] = best
    for days, best in popular.items():
        found[f"own history, then popularity of {days} days"] = own_history_first(replay, best)
    found["own history, then interests"] = own_history_first(replay, found["interests, per click"])
    further = mixed(replay, learned, config)
    return dataclasses.replace(recalls(replay, found | further.found), mixes=further.mixes)


def as_markdown(found: Recalls) -> str:
    """The table, in percent."""
    cells = [f"{part} ({100 * share:.0f} %)" for part, share in found.shares.items()]
    lines = [f"| R@{' / R@'.join(map(str, CUTS))} | {' | '.join(cells)} |"]
    lines.append("|---" * (len(cells) + 1) + "|")
    for name, values in found.table.items():
        cells = [
            " / ".join(f"{100 * values[f'{part}, R@{cut}']:.1f}" for cut in CUTS)
            for part in found.shares
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table and a JSON line per row."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prequential",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="a Parquet file of clicks")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, help="most training examples")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table to")
    options = parser.parse_args()
    config = dataclasses.replace(PRESETS[options.preset], seed=options.seed)
    if options.examples:
        config = dataclasses.replace(config, examples=options.examples)
    found = evaluate(ClickLog.from_parquet(options.data), config)
    text = as_markdown(found)
    sys.stdout.write(text)
    if options.write:
        options.write.write_text(text)
    for name, values in found.table.items():
        rounded: dict[str, object] = {key: round(value, 5) for key, value in values.items()}
        if mix := found.mixes.get(name):
            rounded["mix"] = {key: round(v, 3) for key, v in dataclasses.asdict(mix).items()}
        sys.stdout.write(json.dumps({"name": name, **rounded}) + "\n")


if __name__ == "__main__":
    main()
