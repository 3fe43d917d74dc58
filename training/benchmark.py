"""Models under one evaluation: `python -m training.benchmark --data FOLDER [--presets P,…]`.

`--set temperature=0.07` changes a preset for an experiment.

The folder has `train.txt`, `valid.txt` and `test.txt`: a line is `user item item …` in time order,
items numbered from 1. Models learn from the lines of `train.txt`. Of each other user the first 80 %
of the line is the history, whose last 20 items are the window, and the last 20 % are the targets.
Search is exact over all items, best over interests; items of the history may be found.

Prints a table and last one JSON line per preset.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, get_type_hints

import numpy as np
import numpy.typing as npt

from training.evaluation import CUTS, HeldOut, measures, search
from training.inference import encode_windows, item_vectors
from training.item_knn import ItemKnn
from training.max_mf import MaxMf
from training.mixing import Clicks, Known, fitted
from training.mixing import found as best_of
from training.model import Mind
from training.preset import MAX_MF, PRESETS, TrainingConfig
from training.recency import split_users, trained_model
from training.sequences import Sequences, item_counts

WINDOW: Final = 20
HISTORY_SHARE: Final = 0.8
COLUMNS: Final = (
    ("recall_at_20", "R@20"),
    ("recall_at_50", "R@50"),
    ("hit_rate_at_20", "HR@20"),
    ("hit_rate_at_50", "HR@50"),
    ("ndcg_at_20", "NDCG@20"),
    ("ndcg_at_50", "NDCG@50"),
)
_LABELS: Final = (
    *("preset", "seeds", *(label for _, label in COLUMNS)),
    *("mean cosine", "catalogue", "seconds"),
)
_HEAD: Final = (f"| {' | '.join(_LABELS)} |", "|---" * len(_LABELS) + "|")
UNTRAINED: Final = ("popularity", "item-knn")
MIXED: Final = "mixed"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set: users to learn from, and users to recommend to."""

    train: Sequences
    valid: HeldOut
    test: HeldOut
    items: int

    @classmethod
    def read(cls, folder: Path) -> "Benchmark":
        """Read the three files of a folder.

        Raises:
            SystemExit: a file is missing or a line is not as described; names file and line.
        """
        parts = {part: _lines(folder / f"{part}.txt") for part in ("train", "valid", "test")}
        train = parts["train"]
        rows = np.concatenate(train).astype(np.int32) if train else np.zeros(0, np.int32)
        starts = np.concatenate([[0], np.cumsum([len(line) for line in train])]).astype(np.int64)
        items = max(int(line.max()) for lines in parts.values() for line in lines)
        return cls(Sequences(rows, starts), _held(parts["valid"]), _held(parts["test"]), items)


def _lines(path: Path) -> list[npt.NDArray[np.int64]]:
    try:
        text = path.read_text()
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = [int(word) for word in line.split()[1:]]
        except ValueError as error:
            raise SystemExit(f"{path}:{number}: {error}; a line is `user item item …`") from error
        if not values or min(values) < 1:
            raise SystemExit(f"{path}:{number}: items are numbered from 1, and there must be some")
        lines.append(np.array(values, np.int64))
    if not lines:
        raise SystemExit(f"{path} is empty")
    return lines


def _held(lines: list[npt.NDArray[np.int64]]) -> HeldOut:
    windows = np.zeros((len(lines), WINDOW), np.int64)
    targets = []
    for place, line in enumerate(lines):
        cut = int(len(line) * HISTORY_SHARE)
        window = line[max(0, cut - WINDOW) : cut]
        windows[place, : len(window)] = window
        targets.append(frozenset(line[cut:].tolist()))
    return HeldOut(windows, targets)


Search = Callable[[HeldOut], tuple[npt.NDArray[np.int64], float | None]]
"""Rows found, int64 (U, 50), and the mean cosine between a user's interests if there are any."""


def popularity(data: Benchmark) -> Search:
    """The most clicked items for everyone."""
    clicks = np.bincount(data.train.rows, minlength=data.items + 1)[1:]
    top = np.argsort(-clicks, kind="stable")[: max(CUTS)] + 1
    return lambda held_out: (np.tile(top, (len(held_out), 1)), None)


def item_knn(data: Benchmark) -> Search:
    """Items that users of the window's items clicked, too."""
    knn = ItemKnn(data.train, data.items)
    return lambda held_out: (knn.search(held_out.windows, max(CUTS)), None)


def trained(data: Benchmark, config: TrainingConfig) -> Search:
    """The served form of a trained model."""
    model, _ = trained_model(data.train, data.items, config)
    table = item_vectors(model)

    def found(held_out: HeldOut) -> tuple[npt.NDArray[np.int64], float | None]:
        interests, counts = encode_windows(
            model, table, held_out.windows, config, held_out.profiles
        )
        learned = interests[:, :, : interests.shape[2] - model.marks]
        return search(interests, counts, table, max(CUTS)), mean_cosine(learned, counts)

    return found


def mixed(data: Benchmark, config: TrainingConfig) -> Search:
    """A trained model's interests, the window's items and popularity in the training part.

    What each counts is fitted on users held out of the training part, with a model of the others.
    """
    model, config = trained_model(data.train, data.items, config)
    others, held_out = split_users(data.train, WINDOW, config.seed)
    teacher, _ = trained_model(others, data.items, config)
    clicks = Clicks.of(held_out.targets)
    mix = fitted(_known(teacher, others, held_out, config), clicks)
    return lambda held_out: (
        best_of(_known(model, data.train, held_out, config), mix, max(CUTS)),
        None,
    )


def _known(model: Mind, learned: Sequences, held_out: HeldOut, config: TrainingConfig) -> Known:
    table = item_vectors(model)
    vectors, counts = encode_windows(model, table, held_out.windows, config, held_out.profiles)
    clicks = item_counts(learned, len(table) - 1)
    popularity = np.log1p(np.concatenate([[0], clicks])).astype(np.float32)[None]
    at = np.zeros(len(held_out), np.int64)
    return Known(table, vectors, counts, held_out.windows, popularity, at)


def max_mf(data: Benchmark, config: TrainingConfig) -> Search:
    """Users' vectors by matrix factorisation, found for each window."""
    model = MaxMf(data.train, data.items, config)

    def found(held_out: HeldOut) -> tuple[npt.NDArray[np.int64], float | None]:
        vectors, counts = model.encode(held_out.windows)
        lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
        best = search(vectors, counts, model.table, max(CUTS))
        return best, mean_cosine(vectors / np.maximum(lengths, 1e-12), counts)

    return found


def mean_cosine(interests: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> float | None:
    """Mean cosine between two interests of a user; None where nobody has two.

    Args:
        interests: float32 (U, K, D), of length 1.
        counts: int64 (U,), how many of the K are used.
    """
    cosines = interests @ interests.transpose(0, 2, 1)  # (U, K, K)
    used = np.arange(interests.shape[1]) < counts[:, None]  # (U, K)
    pairs = np.triu(used[:, :, None] & used[:, None, :], 1)
    return float(cosines[pairs].mean()) if pairs.any() else None


def run(
    data: Benchmark, preset: str, seed: int, changes: Mapping[str, object] | None = None
) -> dict[str, dict[str, float]]:
    """Train one preset, with some fields changed, and measure it: part → measures."""
    began = time.perf_counter()
    if preset == "popularity":
        find = popularity(data)
    elif preset == "item-knn":
        find = item_knn(data)
    elif preset == MAX_MF.name:
        find = max_mf(data, dataclasses.replace(MAX_MF, seed=seed, **(changes or {})))  # type: ignore[arg-type]
    else:
        fixed: dict[str, object] = {"seed": seed, "window_length": WINDOW}
        if changes and "fade" in changes:
            fixed["fades"] = ()
        if preset == MIXED:
            fixed["trial_marks"] = 0  # a mix leaves out own items by name
        base = PRESETS["default" if preset == MIXED else preset]
        config = dataclasses.replace(base, **fixed, **(changes or {}))  # type: ignore[arg-type]
        find = mixed(data, config) if preset == MIXED else trained(data, config)
    seconds = time.perf_counter() - began
    results = {}
    for part, held_out in (("valid", data.valid), ("test", data.test)):
        found, likeness = find(held_out)
        results[part] = measures(found, held_out.targets) | {
            "catalogue": len(np.unique(found[found > 0])) / data.items,
            "seconds": seconds,
        }
        if likeness is not None:
            results[part]["mean_cosine"] = likeness
    return results


def renewed(text: str, rows: Mapping[str, str], order: Sequence[str]) -> str:
    """A table with some rows written anew.

    Args:
        text: the file as it was; only its rows stay. Empty if there is none.
        rows: by preset.
        order: all presets.
    """
    before = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    all_rows = before | dict(rows)
    lines = [all_rows[preset] for preset in order if preset in all_rows]
    title = "Written by `python -m training.benchmark`; what it says: [the model](model.md).\n"
    return "\n".join([title, *_HEAD, *lines]) + "\n"


def table_row(preset: str, results: list[dict[str, float]]) -> str:
    """Mean and spread over seeds, in percent."""
    cells = [_cell([100 * result[name] for result in results], "{:.1f}") for name, _ in COLUMNS]
    likeness = [result["mean_cosine"] for result in results if "mean_cosine" in result]
    cells.append(_cell(likeness, "{:.2f}") if likeness else "")
    cells.append(_cell([result["catalogue"] for result in results], "{:.2f}"))
    cells.append(f"{np.mean([result['seconds'] for result in results]):.0f}")
    return f"| {preset} | {len(results)} | {' | '.join(cells)} |"


def _cell(values: list[float], form: str) -> str:
    spread = f" ± {form.format(np.std(values))}" if len(values) > 1 and np.std(values) else ""
    return form.format(np.mean(values)) + spread


def change(text: str) -> tuple[str, object]:
    """A field of `TrainingConfig` and its new value, from `name=value`.

    Raises:
        argparse.ArgumentTypeError: there is no such field, or the value is not of its type.
    """
    name, _, value = text.partition("=")
    types = get_type_hints(TrainingConfig)
    del types["fades"]  # a change of `fade` is not to be overruled
    if name not in types:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(types)}")
    if types[name] is bool:
        if value not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"{name} is true or false, not {value!r}")
        return name, value == "true"
    try:
        return name, types[name](value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from error


def main() -> None:
    """Measure the presets named, all of them if none is."""
    known = [*UNTRAINED, MAX_MF.name, *PRESETS, MIXED]
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder")
    parser.add_argument("--presets", default=",".join(known), help=f"some of {', '.join(known)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many, of those that are trained")
    parser.add_argument(
        "--write",
        type=Path,
        help="the Markdown file whose rows of these presets are written anew; without --set, "
        "docs/benchmark-FOLDER.md if there is a folder docs",
    )
    parser.add_argument(
        "--set",
        type=change,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a field of the presets that are trained",
    )
    options = parser.parse_args()
    presets = options.presets.split(",")
    if unknown := sorted(set(presets) - set(known)):
        parser.error(f"unknown presets: {', '.join(unknown)}")
    data = Benchmark.read(options.data)
    write = options.write
    if write is None and not options.set and Path("docs").is_dir():
        write = Path("docs") / f"benchmark-{options.data.resolve().name}.md"
    rows = {}
    objects = []
    sys.stdout.write("\n".join(_HEAD) + "\n")
    for preset in presets:
        seeds = 1 if preset in UNTRAINED else options.seeds
        results = [run(data, preset, seed, dict(options.set)) for seed in range(seeds)]
        rows[preset] = table_row(preset, [result["test"] for result in results])
        sys.stdout.write(rows[preset] + "\n")
        sys.stdout.flush()
        objects.append(
            {"preset": preset, "set": dict(options.set), "seeds": seeds} | _means(results)
        )
    if write is not None:
        before = write.read_text() if write.exists() else ""
        write.write_text(renewed(before, rows, known))
    for one in objects:
        sys.stdout.write(json.dumps(one) + "\n")


def _means(results: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Measures on test, and those on valid by their part's name."""
    means = {
        part: {
            name: round(float(np.mean([result[part][name] for result in results])), 5)
            for name in results[0][part]
        }
        for part in ("valid", "test")
    }
    return {**means["test"], "valid": means["valid"]}


if __name__ == "__main__":
    main()
