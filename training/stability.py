"""How far a space moves from release to release: `python -m training.stability [--days 7,30]`.

One release learns from the clicks up to some days before a moment, the next from those up to that
moment, in four ways: cold and warm, each as it comes out and aligned to the first. The clicks after
the moment are to be found. The same windows, of the clicks that both know, are encoded by both.

U users, L window length, K interests, D vector width.
"""

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from training.alignment import mean_cosine, shared_rows
from training.click_log import ClickLog
from training.evaluation import HeldOut, evaluate
from training.experiments import DEFAULT_DATA
from training.fit import torch_threads
from training.inference import encode_windows, item_vectors, learned_vectors
from training.model import Mind, ServedMind
from training.preset import PRESETS, TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences
from training.trainer import hold_out, vocabulary
from training.warm_start import Previous, align, parameters_of, warm_model

_DAY_MS: Final = 86_400_000
_COLUMNS: Final = {
    "item_cosine": "item cosine",
    "interest_cosine": "interest cosine",
    "strongest_changed": "strongest changed",
    "recall_at_20": "R@20",
    "recall_at_50": "R@50",
    "seconds": "seconds",
}
_PERCENT: Final = ("strongest_changed", "recall_at_20", "recall_at_50")


@dataclass(frozen=True)
class Trained:
    """A model, the ids of its rows 1..N, how it was trained, and how long that took in s."""

    model: Mind
    item_ids: list[str]
    config: TrainingConfig
    seconds: float

    def encode(
        self, log: ClickLog
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Interests (U, K, D) without marks, how many are used (U,), and weights (U, K)."""
        sequences = Sequences.from_log(log, self.item_ids)
        windows = torch.from_numpy(sequences.last_windows(self.config.window_length))
        table = torch.from_numpy(item_vectors(self.model))
        with torch.no_grad(), torch_threads(self.config.threads):
            vectors, counts, weights, _, _ = ServedMind(self.model).eval()(
                table, windows, torch.zeros(windows.shape)
            )
        width = self.model.table.shape[1]
        return vectors[:, :, :width].numpy(), counts.numpy(), weights.numpy()

    def left(self) -> Previous:
        """What its release would leave to the next."""
        return Previous(
            name="before",
            preset=self.config.name,
            fade=self.config.fade,
            item_ids=self.item_ids,
            items=learned_vectors(self.model),
            parameters=parameters_of(self.model),
            marks=self.model.marks,
            colours=self.model.colours.numpy(),
        )


def trained(past: ClickLog, config: TrainingConfig, previous: Previous | None = None) -> Trained:
    """Train on all of a log: cold, or from a release if there is one."""
    item_ids = vocabulary(past, config.min_item_clicks)
    sequences = Sequences.from_log(past, item_ids)
    began = time.perf_counter()
    if previous is None:
        model, config = trained_model(sequences, len(item_ids), config)
    else:
        model, config = warm_model(sequences, item_ids, config, previous)
    return Trained(model, item_ids, config, time.perf_counter() - began)


def aligned(one: Trained, previous: Previous) -> Trained:
    """The same, aligned to a release."""
    began = time.perf_counter()
    model = copy.copy(one.model)  # shares the graph, which cannot be copied deeply
    model._parameters = copy.deepcopy(one.model._parameters)
    model._buffers = copy.deepcopy(one.model._buffers)
    model._modules = copy.deepcopy(one.model._modules)
    align(model, one.item_ids, previous)
    seconds = one.seconds + time.perf_counter() - began
    return Trained(model, one.item_ids, one.config, seconds)


def movement(before: Trained, after: Trained, log: ClickLog) -> dict[str, float]:
    """How much two releases differ in what they say.

    Args:
        before: the earlier release.
        after: the later one.
        log: whose users' windows are encoded by both; of items that both know.

    Returns:
        `item_cosine`, the mean cosine of the same item in both; `interest_cosine`, of the same slot
        of the same user; and `strongest_changed`, the share of users of several interests whose
        strongest is in another slot.
    """
    rows, others = shared_rows(after.item_ids, before.item_ids)
    items = mean_cosine(learned_vectors(after.model), learned_vectors(before.model), rows, others)
    vectors, counts, weights = after.encode(log)
    old_vectors, _, old_weights = before.encode(log)
    used = np.arange(vectors.shape[1]) < counts[:, None]  # (U, K)
    cosines = np.einsum("ukd,ukd->uk", vectors, old_vectors)  # both of length 1
    several = counts > 1
    changed = weights[several].argmax(axis=1) != old_weights[several].argmax(axis=1)
    return {
        "item_cosine": items,
        "interest_cosine": float(cosines[used].mean()),
        "strongest_changed": float(changed.mean()) if several.any() else math.nan,
    }


def compare(log: ClickLog, config: TrainingConfig, days: int) -> Iterator[dict[str, float | str]]:
    """Train the first release, then the next in each way; a row of measures for each.

    Args:
        log: the clicks; the newest `config.holdout` of them, by time, are to be found.
        config: how.
        days: by how many days of clicks the second release knows more.
    """
    past, future = hold_out(log, config.holdout)
    earlier = past.between(until_ms=int(future.timestamps_ms.min()) - days * _DAY_MS)

    def row(name: str, one: Trained, before: Trained | None = None) -> dict[str, float | str]:
        held_out = HeldOut.split(past, future, one.item_ids, config.window_length)
        table = item_vectors(one.model)
        found = evaluate(
            lambda windows: encode_windows(one.model, table, windows, config), table, held_out
        )
        moved = {} if before is None else movement(before, one, earlier)
        return {"name": name, "days": float(days), **moved, **found, "seconds": one.seconds}

    before = trained(earlier, config)
    left = before.left()
    yield row("the release before", before)
    for name, previous in (("cold", None), ("warm", left)):
        after = trained(past, config, previous)
        yield row(name, after, before)
        yield row(f"{name}, aligned", aligned(after, left), before)


def as_cells(row: dict[str, float | str]) -> str:
    """A row of the table."""
    cells = []
    for column in _COLUMNS:
        value = row.get(column)
        if not isinstance(value, float):
            cells.append("")
        elif column in _PERCENT:
            cells.append(f"{100 * value:.1f}")
        else:
            cells.append(f"{value:.0f}" if column == "seconds" else f"{value:.3f}")
    return f"| {row['name']} | {' | '.join(cells)} |\n"


def main() -> None:
    """Print a table for each number of days, and a JSON line per row."""
    parser = argparse.ArgumentParser(
        prog="python -m training.stability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="a Parquet file of clicks")
    parser.add_argument("--share", type=float, default=1.0, help="use so much of it, the oldest")
    parser.add_argument("--days", default="7,30", help="between the two releases")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, help="most training examples of a cold start")
    parser.add_argument("--warm", type=float, help="share of them of a warm one")
    options = parser.parse_args()
    config = dataclasses.replace(PRESETS[options.preset], seed=options.seed)
    if options.examples:
        config = dataclasses.replace(config, examples=options.examples)
    if options.warm:
        config = dataclasses.replace(config, warm=options.warm)
    log = ClickLog.from_parquet(options.data)
    if options.share < 1:
        log = log.between(until_ms=log.cut_ms(options.share))
    line = sys.stdout.write
    rows = []
    for days in map(int, options.days.split(",")):
        line(f"\n| {days} days later | {' | '.join(_COLUMNS.values())} |\n")
        line("|---" * (len(_COLUMNS) + 1) + "|\n")
        for row in compare(log, config, days):
            rows.append(row)
            line(as_cells(row))
            sys.stdout.flush()
    for row in rows:
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        line(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
