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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from encoder.mix import Mix
from training.click_log import ClickLog
from training.evaluation import CUTS, search
from training.experiments import DEFAULT_DATA
from training.inference import encode_windows
from training.item_knn import ItemKnn
from training.mixing import PARTS, fitted
from training.mixing import found as best_of
from training.preset import PRESETS, TrainingConfig
from training.replay import (
    DAY_MS,
    POPULAR_DAYS,
    Learned,
    Replay,
    clicks_at,
    codes_of,
    known_before,
    learn,
)
from training.sequences import Sequences

TRAINED_SHARE: Final = 0.8
FITTED_SHARE: Final = 0.1
"""Newest part of what is learned from: the mixes are fitted on it, with a model of the rest."""
_POPULAR_DAYS: Final = (POPULAR_DAYS, 30)
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
_TOP: Final = max(CUTS)

Rows = npt.NDArray[np.int64]


def interests(replay: Replay, learned: Learned) -> dict[str, Rows]:
    """What a trained model finds, by how often interests are brought up to date: (M, 50) each.

    All hold positions in the log's `item_ids`, best first; -1 where nothing is found.
    """
    model, config, table = learned.model, learned.config, learned.table
    everything = Sequences.from_log(replay.log, learned.item_ids)
    codes = codes_of(replay.log, learned.item_ids)
    found = {}
    times = replay.times
    for name, instants in {
        "interests, per click": times,
        "interests, hourly": times // _HOUR_MS * _HOUR_MS,
        "interests, nightly": times // DAY_MS * DAY_MS,
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
        wanted = clicks_at(earlier, codes)
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
        while times[since] < at - days * DAY_MS:
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
    replay = Replay.of(log, TRAINED_SHARE)
    learned = learn(replay, config)
    found = interests(replay, learned)
    popular = {days: recent_popularity(replay, days) for days in _POPULAR_DAYS}
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
            rounded["mix"] = {key: round(v, 3) for key, v in mix.weights().items()}
        sys.stdout.write(json.dumps({"name": name, **rounded}) + "\n")


if __name__ == "__main__":
    main()
