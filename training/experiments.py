"""The rows of EXPERIMENTS.md: `python -m training.experiments [VARIANT ...] [--seeds N]`.

Trains every variant on the oldest 90 % of the first 80 % of Online Retail II and measures it on the
rest of that part; the newest 20 % of the log, which the demo replays, is never looked at.
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from training.benchmark import mean_cosine
from training.click_log import ClickLog
from training.evaluation import HeldOut, search
from training.inference import encode_windows, item_vectors
from training.preset import PRESETS, TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences
from training.trainer import hold_out, measure, vocabulary

SEEN: Final = 0.8
HOLDOUT: Final = 0.1
DEFAULT_DATA: Final = (
    Path(__file__).resolve().parent.parent / "mindstream" / "data" / "online_retail_II.parquet"
)

# What both presets were on 2026-11-24.
_THEN: Final[dict[str, Any]] = {
    "width": 64,
    "sampler": "log_uniform",
    "negatives": 1024,
    "epochs": 1.0,
    "learning_rate": 3e-3,
}
_PAPER: Final = dataclasses.replace(PRESETS["paper"], **_THEN)
_FIRST: Final = dataclasses.replace(
    PRESETS["default"],
    **_THEN,
    targets=4,
    horizon=100,
    fades=(),
    smoothing=0.0,
    item_dropout=0.0,
)
_ORDERLESS: Final = dataclasses.replace(PRESETS["default"], fades=(), examples=200_000)

# Steps from the paper to the first default, then one change at a time from it; then the default.
VARIANTS: Final[dict[str, tuple[TrainingConfig, dict[str, Any]]]] = {
    "paper": (_PAPER, {}),
    "paper, no ReLU layer": (_PAPER, {"hidden": 0}),
    "paper, no ReLU layer, cosine": (_PAPER, {"hidden": 0, "cosine": True, "temperature": 0.1}),
    "first default, one target": (_FIRST, {"targets": 1}),
    "first default": (_FIRST, {}),
    "half an epoch": (_FIRST, {"epochs": 0.5}),
    "horizon 20": (_FIRST, {"horizon": 20}),
    "ReLU layer": (_FIRST, {"hidden": 256}),
    "one interest": (_FIRST, {"interests": 1}),
    "eight interests": (_FIRST, {"interests": 8}),
    "one round of routing": (_FIRST, {"routing_iterations": 1}),
    "soft attention, p = 1": (_FIRST, {"attention_power": 1.0}),
    "soft attention, p = 2": (_FIRST, {"attention_power": 2.0}),
    "negatives by popularity": (_FIRST, {"sampler": "popularity"}),
    "negatives evenly": (_FIRST, {"sampler": "uniform"}),
    "no correction": (_FIRST, {"correct_sampling": False}),
    "temperature 0.07": (_FIRST, {"temperature": 0.07}),
    "temperature 0.13": (_FIRST, {"temperature": 0.13}),
    "default, 200,000 examples": (PRESETS["default"], {"examples": 200_000}),
    "spectral start, 200,000 examples": (
        PRESETS["default"],
        {"spectral": True, "examples": 200_000},
    ),
    "orderless, 200,000 examples": (_ORDERLESS, {}),
    "orderless, spectral start": (_ORDERLESS, {"spectral": True}),
    "orderless, horizon 20": (_ORDERLESS, {"horizon": 20}),
    "fade 0.2": (_ORDERLESS, {"fade": 0.2}),
    "orderless, no smoothing": (_ORDERLESS, {"smoothing": 0.0, "item_dropout": 0.0}),
    "default": (PRESETS["default"], {}),
}
COLUMNS: Final = ("recall_at_20", "recall_at_50", "hit_rate_at_50", "ndcg_at_50")
EXTRAS: Final = ("likeness", "catalogue", "kept")


def run(log: ClickLog, config: TrainingConfig) -> dict[str, float]:
    """Train one variant and measure it.

    Returns:
        Measures as in the manifest; and `likeness`, the mean cosine between a user's interests;
        `catalogue`, the share of items in anyone's top 50; `kept`, the share of interests that are
        likest to themselves after the window slid by a click; `seconds` of training.
    """
    past, future = hold_out(log, config.holdout)
    item_ids = vocabulary(past, config.min_item_clicks)
    sequences = Sequences.from_log(past, item_ids)
    held_out = HeldOut.split(past, future, item_ids, config.window_length)
    began = time.perf_counter()
    model, config = trained_model(sequences, len(item_ids), config)
    seconds = time.perf_counter() - began
    metrics = measure(model, sequences, held_out, config)

    table = item_vectors(model)
    interests, counts = encode_windows(model, table, held_out.windows, config)
    found = search(interests, counts, table, 50)
    full = held_out.windows[(held_out.windows > 0).all(axis=1)]
    before, used = encode_windows(model, table, full[:, :-1], config)
    after, _ = encode_windows(model, table, full[:, 1:], config)
    slots = np.arange(config.interests)
    stay = (before @ after.transpose(0, 2, 1)).argmax(axis=2) == slots  # (U, K)
    likeness = mean_cosine(interests, counts)
    return metrics | {
        "likeness": math.nan if likeness is None else likeness,
        "catalogue": len(np.unique(found[found > 0])) / len(item_ids),
        "kept": float(stay[slots < used[:, None]].mean()),
        "seconds": seconds,
    }


def main() -> None:
    """Print a row of the table for each variant named, all of them if none is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    arguments = parser.parse_args()
    if unknown := set(arguments.variants) - set(VARIANTS):
        parser.error(f"unknown variants: {', '.join(sorted(unknown))}")
    log = ClickLog.from_parquet(arguments.data)
    log = log.between(until_ms=log.cut_ms(SEEN))
    line = sys.stdout.write
    line(
        "| variant | R@20 | R@50 | HR@50 | NDCG@50 | mean cosine | catalogue | slots kept "
        "| seconds |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    for place, name in enumerate(arguments.variants or VARIANTS):
        base, changes = VARIANTS[name]
        results = []
        for seed in range(arguments.seeds):
            config = dataclasses.replace(base, holdout=HOLDOUT, seed=seed, **changes)
            results.append(run(log, config))
        if not place:
            cells = [f"{100 * results[0][f'popularity_{column}']:.1f}" for column in COLUMNS]
            line(f"| popularity | {' | '.join(cells)} | | | | |\n")
        cells = [_cell([100 * result[column] for result in results]) for column in COLUMNS]
        cells += [f"{np.mean([result[extra] for result in results]):.2f}" for extra in EXTRAS]
        seconds = np.mean([result["seconds"] for result in results])
        line(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |\n")
        sys.stdout.flush()


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
