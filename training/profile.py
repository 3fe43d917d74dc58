"""What a user's country is worth as a profile: `python -m training.profile [--seeds N]`.

Trains the preset `paper` on the oldest 90 % of the first 80 % of Online Retail II: as it is, with
each user's country as the profile, and with the countries dealt out at random, which makes a model
of the same size that is told nothing. What it finds of the rest of that part is measured over all
users, and over those abroad.

U users, of whom H are held out; M measures; S seeds.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.benchmark import Benchmark, popularity, trained
from training.click_log import ClickLog
from training.evaluation import HeldOut, measures
from training.experiments import COLUMNS, DEFAULT_DATA, HOLDOUT, SEEN
from training.preset import PRESETS, TrainingConfig
from training.sequences import Sequences
from training.trainer import hold_out, vocabulary

EXAMPLES: Final = 200_000
HOME: Final = "United Kingdom"
NOT_KNOWN: Final = "Unspecified"
# Which fields of `Countries.profiles` each variant is told.
VARIANTS: Final[dict[str, list[int]]] = {
    "no profile": [],
    "random country": [1],
    "country": [0],
}


def past_countries(
    path: Path, user_ids: list[str], until_ms: int
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The country that most of each user's clicks before a moment came from.

    Args:
        path: a Parquet file with the columns `user_id`, `timestamp` and `country`.
        user_ids: U ids.
        until_ms: clicks from then on are not looked at.

    Returns:
        Names of the countries, sorted; and int64 (U,), of each user the position there plus 1, or
        0 where it is not known. Of countries with as many clicks it is the first.
    """
    clicks = pq.read_table(path, columns=["user_id", "timestamp", "country"])
    before = pa.scalar(until_ms, pa.timestamp("ms"))
    clicks = clicks.filter(pc.field("timestamp") < before)
    country = clicks.column("country").cast(pa.string())
    clicks = clicks.set_column(2, "country", country)
    counted = clicks.group_by(["user_id", "country"]).aggregate([([], "count_all")])
    most: dict[str, tuple[int, str]] = {}
    for row in counted.to_pylist():
        user, candidate = str(row["user_id"]), (-row["count_all"], row["country"])
        most[user] = min(candidate, most.get(user, candidate))
    names = sorted({name for _, name in most.values()} - {NOT_KNOWN})
    code = {name: place for place, name in enumerate(names, start=1)}
    codes = [code.get(most[user][1], 0) if user in most else 0 for user in user_ids]
    return names, np.array(codes, np.int64)


@dataclass(frozen=True)
class Countries:
    """A log split by time, and where its users are.

    Attributes:
        data: users to learn from and, as both of its other parts, those of them to measure on. The
            profiles have two fields: the country, and a country dealt out at random.
        groups: "all" and "abroad", bool (H,); who is abroad goes by the first field.
    """

    data: Benchmark
    groups: dict[str, npt.NDArray[np.bool_]]

    @classmethod
    def split(cls, log: ClickLog, path: Path, config: TrainingConfig) -> "Countries":
        """Hold out the newest clicks of a log, whose countries are in the file at `path`."""
        past, future = hold_out(log, config.holdout)
        until_ms = int(past.timestamps_ms.max()) + 1
        names, codes = past_countries(path, past.user_ids, until_ms)
        dealt = np.random.default_rng([config.seed, 4]).permutation(codes)
        profiles = np.stack([codes, dealt], axis=1)  # (U, 2)
        item_ids = vocabulary(past, config.min_item_clicks)
        sequences = dataclasses.replace(Sequences.from_log(past, item_ids), profiles=profiles)
        held_out = HeldOut.split(past, future, item_ids, config.window_length, profiles)
        foreign = np.array([False, *(name != HOME for name in names)])  # by code
        groups = {
            "all": np.ones(len(held_out), bool),
            "abroad": foreign[_codes(held_out)[:, 0]],
        }
        return cls(Benchmark(sequences, held_out, held_out, len(item_ids)), groups)

    def told(self, fields: list[int]) -> Benchmark:
        """The data with these fields of the profiles alone; without profiles if there are none."""
        train, test = self.data.train, self.data.test
        train = dataclasses.replace(train, profiles=_codes(train)[:, fields] if fields else None)
        test = dataclasses.replace(test, profiles=_codes(test)[:, fields] if fields else None)
        return Benchmark(train, test, test, self.data.items)


def _codes(part: Sequences | HeldOut) -> npt.NDArray[np.int64]:
    if part.profiles is None:
        raise ValueError("these users have no profiles")
    return part.profiles


def scores(found: npt.NDArray[np.int64], held_out: HeldOut) -> npt.NDArray[np.float64]:
    """The measures in `COLUMNS` of each user, in percent: float64 (H, M)."""
    each = [measures(found[[place]], [one]) for place, one in enumerate(held_out.targets)]
    return 100 * np.array([[one[column] for column in COLUMNS] for one in each])


def compare(log: ClickLog, path: Path, config: TrainingConfig, seeds: int) -> Iterator[str]:
    """Rows of the table: each variant on each group, and what it finds more than those before it.

    Of a variant, the mean over users of each seed, averaged, and the standard deviation over
    seeds. Of a difference, the mean over seeds of each user, averaged, and its standard error over
    users.
    """
    splits = [
        Countries.split(log, path, dataclasses.replace(config, seed=seed)) for seed in range(seeds)
    ]
    groups, data = splits[0].groups, splits[0].data
    untrained = scores(popularity(data)(data.test)[0], data.test)
    for group, users in groups.items():
        yield _row("popularity", group, users, untrained[users].mean(axis=0), None)
    done: dict[str, npt.NDArray[np.float64]] = {}
    for name, fields in VARIANTS.items():
        results = []
        for seed, split in enumerate(splits):
            known = split.told(fields)
            found, _ = trained(known, dataclasses.replace(config, seed=seed))(known.test)
            results.append(scores(found, known.test))
        each = np.stack(results)  # (S, H, M)
        for group, users in groups.items():
            means = each[:, users].mean(axis=1)  # (S, M)
            yield _row(name, group, users, means.mean(axis=0), means.std(axis=0))
        for other, theirs in done.items():
            gain = (each - theirs).mean(axis=0)  # (H, M)
            for group, users in groups.items():
                error = gain[users].std(axis=0) / np.sqrt(users.sum())
                yield _row(f"{name}, over {other}", group, users, gain[users].mean(axis=0), error)
        done[name] = each


def _row(
    name: str,
    group: str,
    users: npt.NDArray[np.bool_],
    means: npt.NDArray[np.float64],
    spread: npt.NDArray[np.float64] | None,
) -> str:
    cells = [f"{mean:.1f}" for mean in means.round(1) + 0.0]  # no -0.0
    if spread is not None:
        cells = [f"{cell} ± {one:.1f}" for cell, one in zip(cells, spread, strict=True)]
    return f"| {name} | {group} | {users.sum()} | {' | '.join(cells)} |\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="most training examples")
    arguments = parser.parse_args()
    log = ClickLog.from_parquet(arguments.data)
    log = log.between(until_ms=log.cut_ms(SEEN))
    config = dataclasses.replace(PRESETS["paper"], holdout=HOLDOUT, examples=arguments.examples)
    head = ["variant", "group", "users", "R@20", "R@50", "HR@50", "NDCG@50"]
    sys.stdout.write(f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n")
    for row in compare(log, arguments.data, config, arguments.seeds):
        sys.stdout.write(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
