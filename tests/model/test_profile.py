"""What a country is worth is measured on users whose later countries are not known."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.click_log import ClickLog
from training.preset import PRESETS
from training.profile import VARIANTS, Countries, compare, past_countries

CONFIG = dataclasses.replace(
    PRESETS["paper"], width=8, hidden=8, negatives=16, examples=500, holdout=0.6
)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
USERS, CLICKS, PAST = 40, 8, 3


def ms(hour: int) -> int:
    return int((BEGIN + timedelta(hours=hour)).timestamp() * 1000)


def written(path: Path, clicks: list[tuple[int, str, int, str]]) -> Path:
    """Clicks of a user, an item, an hour and a country."""
    users, items, hours, countries = zip(*clicks, strict=True)
    times = pa.array([ms(hour) for hour in hours], pa.timestamp("ms"))
    table = {
        "user_id": pa.array(users, pa.int32()),
        "item": pa.array(items),
        "timestamp": times,
        "country": pa.array(countries).dictionary_encode(),
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Every fourth user is abroad; in the clicks to be found, which are more, all but one are."""
    rng = np.random.default_rng(0)
    clicks = []
    for user in range(USERS):
        at = "France" if user % 4 == 0 else "United Kingdom"
        for hour in range(CLICKS if user else PAST):
            now = at if hour < PAST else "Spain"
            clicks.append((user, f"item-{rng.integers(60):02}", hour, now))
    return written(tmp_path / "clicks.parquet", clicks)


def test_the_most_frequent_country_of_the_past_counts(tmp_path: Path) -> None:
    """Not the newest, nor any from the moment on; of equals the first; an unknown one is 0."""
    path = written(
        tmp_path / "clicks.parquet",
        [
            (7, "a", 0, "Spain"),
            (7, "b", 1, "Spain"),
            (7, "c", 2, "Belgium"),
            (7, "d", 3, "Belgium"),
            (7, "e", 4, "Belgium"),
            (8, "a", 0, "Spain"),
            (8, "a", 1, "Belgium"),
            (9, "a", 1, "Unspecified"),
            (10, "a", 3, "Norway"),
        ],
    )
    names, codes = past_countries(path, ["7", "8", "9", "10"], until_ms=ms(3))
    assert names == ["Belgium", "Spain"]
    assert codes.tolist() == [2, 1, 0, 0]


def test_no_user_has_the_country_of_the_clicks_to_be_found(file: Path) -> None:
    """All of those are in Spain; only who was abroad before is abroad, as far as is known."""
    split = Countries.split(ClickLog.from_parquet(file), file, CONFIG)
    train, test = split.data.train, split.data.test
    assert train.profiles is not None
    assert test.profiles is not None
    left = sorted(str(user) for user in range(1, USERS))
    abroad = [int(user) % 4 == 0 for user in left]
    assert split.groups["all"].tolist() == [True] * len(left)
    assert split.groups["abroad"].tolist() == abroad
    france, united_kingdom = 1, 2
    assert test.profiles[:, 0].tolist() == np.where(abroad, france, united_kingdom).tolist()
    country, dealt = train.profiles.T
    assert (country != dealt).any()
    assert sorted(country) == sorted(dealt)


def test_a_variant_is_told_its_fields_alone(file: Path) -> None:
    """In training and when measured."""
    split = Countries.split(ClickLog.from_parquet(file), file, CONFIG)
    for name, fields in VARIANTS.items():
        told = split.told(fields)
        for part, whole in ((told.train, split.data.train), (told.test, split.data.test)):
            if name == "no profile":
                assert part.profiles is None
                continue
            assert part.profiles is not None
            assert whole.profiles is not None
            assert part.profiles.shape[1] == 1
            place = 0 if name == "country" else 1
            np.testing.assert_array_equal(part.profiles[:, 0], whole.profiles[:, place])


def test_every_variant_has_a_row_for_all_and_one_for_those_abroad(file: Path) -> None:
    """With how many users there are, and the differences from those before it."""
    rows = list(compare(ClickLog.from_parquet(file), file, CONFIG, seeds=2))
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    names = [
        "popularity",
        "no profile",
        "random country",
        "random country, over no profile",
        "country",
        "country, over no profile",
        "country, over random country",
    ]
    assert [tuple(row[:3]) for row in cells] == [
        (name, group, users) for name in names for group, users in (("all", "39"), ("abroad", "9"))
    ]
    assert all("±" in cell for row in cells[2:] for cell in row[3:])
