"""What fields say of items that nobody has clicked: `python -m training.new_items [VARIANT ...]`.

A model learns from the first 80 % of Online Retail II by time, without any click on a tenth of its
items, drawn at random. Each of these then gets a vector from its title's words and its price alone,
and so does each item whose first click comes later. What is measured is the recall of the later
clicks on them, by users who had clicked items that the model knows: among these items only, and
among all items.

U users, N items that the model knows, M new ones, D vector width.
"""

import argparse
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from training.click_log import ClickLog
from training.evaluation import CUTS, HeldOut, measures, search
from training.experiments import DEFAULT_DATA, SEEN
from training.inference import encode_windows, item_vectors
from training.item_fields import Item, ItemFields, Kind, learn_fields
from training.preset import PRESETS, TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences

HELD_OUT: Final = 0.1
KINDS: Final[dict[str, Kind]] = {"title": "words", "price": "band"}
EXAMPLES: Final = 200_000
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "fields": {},
    "fields, without item dropout": {"item_dropout": 0.0},
    "fields, dropped items keep their neighbours": {"unlinked": 0.0},
    "fields, half of the dropped keep them": {"unlinked": 0.5},
    "fields, half of the items dropped": {"item_dropout": 0.5},
}
POPULATIONS: Final = ("held out", "later")


@dataclass(frozen=True)
class NewItems:
    """A log split by time, and by items.

    Attributes:
        sequences: what is learned from; clicks on items held out are on row 0, as unknown.
        known: N ids of the items learned, rows 1..N.
        new: M ids, rows N+1..N+M: those held out, then those clicked later only.
        held: how many of the M are held out.
        withheld: rows of all clicks before the split, of those held out as well.
        users: with clicks both before and after the split.
    """

    sequences: Sequences
    known: list[str]
    new: list[str]
    held: int
    withheld: npt.NDArray[np.int32]
    users: HeldOut

    @classmethod
    def split(
        cls, log: ClickLog, *, window_length: int, share: float = HELD_OUT, seed: int = 0
    ) -> "NewItems":
        """Hold out a share of the items of the first part of a log."""
        cut = log.cut_ms(SEEN)
        past, future = log.between(until_ms=cut), log.between(since_ms=cut)
        rng = np.random.default_rng([seed, 3])
        drawn = rng.permutation(len(past.item_ids))[: int(share * len(past.item_ids))]
        held = {past.item_ids[code] for code in drawn.tolist()}
        known = [item for item in past.item_ids if item not in held]
        later = sorted(set(future.item_ids) - set(past.item_ids))
        new = [*sorted(held), *later]
        users = HeldOut.split(past, future, known + new, window_length)
        windows = np.where(users.windows <= len(known), users.windows, 0)
        some = np.flatnonzero(windows.any(axis=1))
        targets = [users.targets[place] for place in some.tolist()]
        return cls(
            Sequences.from_log(past, known),
            known,
            new,
            len(held),
            Sequences.from_log(past, known + new).rows,
            HeldOut(windows[some], targets),
        )

    def rows(self, population: str) -> npt.NDArray[np.int64]:
        """The rows of those "held out", or of those that were clicked "later" only."""
        first = len(self.known) + 1
        end = first + len(self.new)
        middle = first + self.held
        return np.arange(first, middle) if population == "held out" else np.arange(middle, end)

    def on(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[frozenset[int]]]:
        """Positions of the users with later clicks on these rows, and which rows those are."""
        wanted = set(rows.tolist())
        found = [frozenset(wanted & targets) for targets in self.users.targets]
        some = np.array([place for place, one in enumerate(found) if one], np.int64)
        return some, [one for one in found if one]


def catalogue(path: Path, item_ids: list[str]) -> list[Item]:
    """Title and median price of each item, which are known before anyone buys it."""
    prices: dict[Any, list[Any]] = {}
    for event in pq.read_table(path, columns=["item", "price"]).to_pylist():
        prices.setdefault(event["item"], []).append(event["price"])
    return [{"title": item, "price": float(np.median(prices[item]))} for item in item_ids]


def recalls(
    data: NewItems, table: npt.NDArray[np.float32], found: tuple[Any, Any]
) -> dict[str, float]:
    """Recall at each cut, by population and candidates.

    Args:
        data: what to find.
        table: float32 (N+M+1, D).
        found: interests float32 (U, K, D), and int64 (U,) how many of the K are used.
    """
    interests, counts = found
    results: dict[str, float] = {}
    for population in POPULATIONS:
        rows = data.rows(population)
        users, targets = data.on(rows)
        if not targets:
            continue
        alone = np.concatenate([table[:1], table[rows]])
        for candidates, part, first in (("alone", alone, rows[0] - 1), ("all", table, 0)):
            best = search(interests[users], counts[users], part, max(CUTS)) + first
            for name, value in measures(best, targets).items():
                results[f"{population}, {candidates}, {name}"] = value
    rows = np.arange(1, len(data.known) + 1)
    users, targets = data.on(rows)
    best = search(interests[users], counts[users], table[: len(rows) + 1], max(CUTS))
    return results | {f"known, alone, {k}": v for k, v in measures(best, targets).items()}


def baselines(data: NewItems) -> dict[str, dict[str, float]]:
    """Recall by chance and of what is popular: the same items for every user.

    By the clicks before the split, of which the model saw none on these items; and by the very
    clicks that are to be found, which no recommender has. Popularity as the model could know it
    tells new items apart no better than chance, and finds none among all items.
    """
    size = len(data.known) + len(data.new) + 1
    later = [row for targets in data.users.targets for row in targets if row > 0]
    popular = {
        "popularity, had they been sold before": np.bincount(data.withheld, minlength=size),
        "popularity of the clicks to be found": np.bincount(later, minlength=size),
    }
    results: dict[str, dict[str, float]] = {name: {} for name in ("chance", *popular)}
    for population in POPULATIONS:
        rows = data.rows(population)
        users, targets = data.on(rows)
        if not targets:
            continue
        for candidates, among in (("alone", rows), ("all", np.arange(1, size))):
            for cut in CUTS:
                column = f"{population}, {candidates}, recall_at_{cut}"
                results["chance"][column] = cut / len(among)
            for name, clicks in popular.items():
                if not clicks[rows].any():
                    continue
                top = among[np.argsort(-clicks[among], kind="stable")[: max(CUTS)]]
                for measure, value in measures(np.tile(top, (len(users), 1)), targets).items():
                    results[name][f"{population}, {candidates}, {measure}"] = value
    return results


def run(data: NewItems, items: list[Item], config: TrainingConfig) -> dict[str, float]:
    """Train a model with fields and measure its new items.

    Args:
        data: the split.
        items: of all N + M items.
        config: how.

    Returns:
        Recalls, and `seconds` of training.
    """
    learned = learn_fields(KINDS, items[: len(data.known)])
    fields = ItemFields.of(learned, items)
    of_known, of_new = np.split(np.arange(1, len(items) + 1), [len(data.known)])
    began = time.perf_counter()
    model, config = trained_model(
        data.sequences, len(data.known), config, fields=fields.some(of_known)
    )
    seconds = time.perf_counter() - began
    with torch.no_grad():
        vectors = model.vectors_from_fields(fields.some(of_new)).numpy()
    known = item_vectors(model)
    found = encode_windows(model, known, data.users.windows, config)
    return recalls(data, np.concatenate([known, vectors]), found) | {"seconds": seconds}


def main() -> None:
    """Print a row of the table for each variant named, all of them if none is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="most training examples")
    arguments = parser.parse_args()
    if unknown := set(arguments.variants) - set(VARIANTS):
        parser.error(f"unknown variants: {', '.join(sorted(unknown))}")
    log = ClickLog.from_parquet(arguments.data)
    base = dataclasses.replace(
        PRESETS[arguments.preset], fades=(), examples=arguments.examples, name="new items"
    )
    line = sys.stdout.write
    for place, name in enumerate(arguments.variants or VARIANTS):
        results = []
        for seed in range(arguments.seeds):
            data = NewItems.split(log, window_length=base.window_length, seed=seed)
            if not place and not seed:
                line(_head(data))
                for other, result in baselines(data).items():
                    line(_row(other, [result]))
            items = catalogue(arguments.data, data.known + data.new)
            config = dataclasses.replace(base, seed=seed, **VARIANTS[name])
            results.append(run(data, items, config))
        line(_row(name, results))
        sys.stdout.flush()


def _head(data: NewItems) -> str:
    cells = ["R@20 / R@50"]
    for population in POPULATIONS:
        rows = data.rows(population)
        users = len(data.on(rows)[0])
        cells.append(f"{len(rows)} items {population}, {users} users: among themselves")
        cells.append("among all items")
    cells += ["known items", "seconds"]
    return f"| {' | '.join(cells)} |\n" + "|---" * len(cells) + "|\n"


def _row(name: str, results: list[dict[str, float]]) -> str:
    cells = [name]
    columns = [f"{a}, {b}" for a in POPULATIONS for b in ("alone", "all")]
    for column in [*columns, "known, alone"]:
        keys = [f"{column}, recall_at_{cut}" for cut in CUTS]
        values = [[100 * result[key] for result in results if key in result] for key in keys]
        cells.append(" / ".join(f"{np.mean(one):.1f}" for one in values if one))
    seconds = [result["seconds"] for result in results if "seconds" in result]
    cells.append(f"{np.mean(seconds):.0f}" if seconds else "")
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
