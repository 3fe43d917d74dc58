"""Where an interest has changed: `python -m benchmarks.drift [--days 7]`.

One release learns from the clicks up to some days before a moment. It is compared with others on
the same windows: a warm start and a cold one that know those days, too, and one of another seed
that knows just what it knows, which is how much chance alone changes. Each row has the share of
users whose strongest interest has changed (`mindstream.drift`), by the overlap that is asked for.
The last row is what it comes to where each user has another user's interests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch

from encoder.mind_encoder import InterestBatch
from mindstream.drift import N_NEAREST, cosines, coverage, strongest_changed
from training.click_log import ClickLog
from training.experiments import DEFAULT_DATA
from training.inference import item_vectors
from training.model import ServedMind
from training.preset import PRESETS
from training.sequences import Sequences
from training.stability import Trained, trained
from training.trainer import hold_out

USERS: Final = 1000
LEAST: Final = (0.15, 0.2, 0.25, 0.3, 0.5)
_DAY_MS: Final = 86_400_000


def encoded(one: Trained, log: ClickLog) -> InterestBatch:
    """Users drawn from a log, as a model is served."""
    windows = Sequences.from_log(log, one.item_ids).last_windows(one.config.window_length)
    some = np.random.default_rng(0).permutation(len(windows))[:USERS]
    rows = torch.from_numpy(windows[some])
    with torch.no_grad():
        found = ServedMind(one.model).eval()(
            torch.from_numpy(item_vectors(one.model)), rows, torch.zeros(rows.shape)
        )
    return InterestBatch(*(part.numpy() for part in found))


def compared(before: Trained, after: Trained, log: ClickLog) -> dict[str, float]:
    """How far one model departs from another."""
    row_of = {item: row for row, item in enumerate(before.item_ids, start=1)}
    known = [row for row, item in enumerate(after.item_ids, start=1) if item in row_of]
    others = [row_of[after.item_ids[row - 1]] for row in known]
    table = item_vectors(after.model)
    old_items, items = item_vectors(before.model)[others], table[known]
    old, new = encoded(before, log), encoded(after, log)
    return {
        **changed(old, new, old_items, items),
        "item_cosine": float(cosines(old_items, items).mean()),
        "interest_cosine": new.mean_cosine(),
        "coverage": coverage(new, table[1:]),
    }


def changed(
    old: InterestBatch, new: InterestBatch, old_items: np.ndarray, items: np.ndarray
) -> dict[str, float]:
    """The share of users whose strongest interest has changed, by the overlap asked for."""
    return {
        f"below {least:g}": float(
            strongest_changed(old, new, old_items, items, n=N_NEAREST, least=least).mean()
        )
        for least in LEAST
    }


def measured(log: ClickLog, days: int, examples: int) -> Iterator[dict[str, float | str]]:
    """A row for each release, and one for other users' interests."""
    config = dataclasses.replace(PRESETS["default"], seed=0, examples=examples)
    past, future = hold_out(log, config.holdout)
    earlier = past.between(until_ms=int(future.timestamps_ms.min()) - days * _DAY_MS)
    before = trained(earlier, config)
    yield {"name": "warm", **compared(before, trained(past, config, before.left()), earlier)}
    again = trained(earlier, dataclasses.replace(config, seed=1))
    yield {"name": "another seed, the same clicks", **compared(before, again, earlier)}
    yield {"name": "cold", **compared(before, trained(past, config), earlier)}
    old, items = encoded(before, earlier), item_vectors(before.model)[1:]
    order = np.random.default_rng(1).permutation(len(old.counts))
    fields = (getattr(old, field.name)[order] for field in dataclasses.fields(old))
    yield {"name": "other users", **changed(old, InterestBatch(*fields), items, items)}


def main() -> None:
    """Print a JSON line per row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="a Parquet file of clicks")
    parser.add_argument("--days", type=int, default=7, help="between the two releases")
    parser.add_argument("--examples", type=int, default=150_000, help="most training examples")
    options = parser.parse_args()
    for row in measured(ClickLog.from_parquet(options.data), options.days, options.examples):
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
