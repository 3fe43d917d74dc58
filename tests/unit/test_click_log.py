"""A click log is the same whatever file, type or order its clicks come in."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.click_log import ClickLog, ClickLogError, ColumnNames

SHIPPED = Path(__file__).parents[2] / "mindstream" / "data" / "online_retail_II.parquet"


def contents(log: ClickLog) -> list[tuple[str, int, str]]:
    return [
        (log.user_ids[user], int(time), log.item_ids[item])
        for user, time, item in zip(log.users, log.timestamps_ms, log.items, strict=True)
    ]


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


clicks = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["x", "y", "zwölf"]))
)


@given(clicks, st.randoms())
def test_arrival_order_and_repetition_do_not_matter(
    given_clicks: list[tuple[str, int, str]], random: Any
) -> None:
    """The log is the set of its clicks, ordered as windows are: user, time, item."""
    again = given_clicks + given_clicks[::2]
    random.shuffle(again)
    log = ClickLog.from_arrays([c[0] for c in again], [c[2] for c in again], [c[1] for c in again])
    assert contents(log) == sorted(set(given_clicks))
    assert log.user_ids == sorted({c[0] for c in given_clicks})
    assert log.item_ids == sorted({c[2] for c in given_clicks})


def test_the_shipped_log_is_complete() -> None:
    """All of Online Retail II, as its attribution says."""
    log = ClickLog.from_parquet(SHIPPED)
    assert (len(log), len(log.user_ids), len(log.item_ids)) == (768_162, 5_878, 5_230)
    assert log.users.dtype == log.items.dtype == np.int32
    newest = datetime.fromtimestamp(int(log.timestamps_ms.max()) / 1000, UTC)
    assert newest == datetime(2011, 12, 9, 12, 50, tzinfo=UTC)
    assert "12346" in log.user_ids


TIMES = [1_000, 2_000, 3_000]


@pytest.mark.parametrize(
    "timestamps",
    [
        pa.array(TIMES),
        pa.array(TIMES, pa.int32()),
        pa.array([1, 2, 3], pa.timestamp("s")),
        pa.array(TIMES, pa.timestamp("ms")),
        pa.array([t * 1_000_000 + 5 for t in TIMES], pa.timestamp("ns", tz="UTC")),
        pa.array(TIMES, pa.timestamp("ms", tz="Europe/London")),
    ],
)
def test_timestamps_of_any_type_are_milliseconds(tmp_path: Path, timestamps: Any) -> None:
    """Integers are milliseconds; timestamps are converted, finer ones cut."""
    path = write(tmp_path / "f", user_id=["a"] * 3, item_id=["x"] * 3, timestamp=timestamps)
    assert ClickLog.from_parquet(path).timestamps_ms.tolist() == TIMES


@pytest.mark.parametrize(
    ("users", "items"),
    [
        (pa.array(["7", "7", "12"]), pa.array(["x", "y", "x"])),
        (pa.array([7, 7, 12]), pa.array(["x", "y", "x"], pa.large_string())),
        (pa.array(["7", "7", "12"]).dictionary_encode(), pa.array(["x", "y", "x"], pa.string())),
        (pd.Series([7, 7, 12], dtype="int32"), pd.Series(["x", "y", "x"], dtype="category")),
    ],
)
def test_ids_of_any_type_are_text(tmp_path: Path, users: Any, items: Any) -> None:
    """Numbers, strings and categories alike, sorted as text."""
    path = write(tmp_path / "f", user_id=users, item=items, timestamp=[3, 1, 2])
    assert contents(ClickLog.from_parquet(path)) == [("12", 2, "x"), ("7", 1, "y"), ("7", 3, "x")]


def test_a_time_range_includes_its_start_and_not_its_end(tmp_path: Path) -> None:
    """From the file or from the log itself: the same clicks, users and items."""
    path = write(
        tmp_path / "f", user_id=["a", "b", "c"], item_id=["x", "y", "z"], timestamp=[1, 2, 3]
    )
    read = ClickLog.from_parquet(path, since_ms=2, until_ms=3)
    cut = ClickLog.from_parquet(path).between(since_ms=2, until_ms=3)
    assert contents(read) == contents(cut) == [("b", 2, "y")]
    assert (read.user_ids, read.item_ids) == (cut.user_ids, cut.item_ids) == (["b"], ["y"])


def test_columns_can_be_named(tmp_path: Path) -> None:
    """A file with other names is read by them."""
    path = write(tmp_path / "f", who=["a"], what=["x"], when=[1])
    columns = ColumnNames(user=("who",), item=("what",), timestamp=("when",))
    assert contents(ClickLog.from_parquet(path, columns=columns)) == [("a", 1, "x")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["a"], "item_id": ["x"]}, "no column timestamp.*it has user_id, item_id"),
        ({"user_id": ["a"], "timestamp": [1]}, "no column item_id or item"),
        ({"user_id": [None], "item_id": ["x"], "timestamp": [1]}, "user_id is empty in 1 row"),
        ({"user_id": ["a"], "item_id": [1.5], "timestamp": [1]}, "item_id holds double"),
        ({"user_id": ["a"], "item_id": ["x"], "timestamp": ["noon"]}, "timestamp holds string"),
        ({"user_id": ["a"], "item_id": ["x"], "timestamp": [1.5]}, "timestamp holds double"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    """The error names the file, the column, and what was expected."""
    path = write(tmp_path / "clicks.parquet", **columns)
    with pytest.raises(ClickLogError, match=rf"clicks\.parquet.*{message}"):
        ClickLog.from_parquet(path)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    """Absent, or not Parquet: two errors, both naming the path."""
    with pytest.raises(ClickLogError, match=r"nowhere.*does not exist"):
        ClickLog.from_parquet(tmp_path / "nowhere")
    (tmp_path / "text").write_text("user,item\n")
    with pytest.raises(ClickLogError, match=r"text.*cannot be read as Parquet"):
        ClickLog.from_parquet(tmp_path / "text")


@pytest.mark.parametrize(
    ("users", "items", "times"), [(["a"], ["x"], []), ([None], ["x"], [1]), (["a"], [None], [1])]
)
def test_incomplete_clicks_are_refused(users: Any, items: Any, times: Any) -> None:
    """Every click has a user, an item and a time."""
    with pytest.raises(ClickLogError):
        ClickLog.from_arrays(users, items, times)


def test_a_share_of_the_log_by_time() -> None:
    """The cut keeps the clicks of one moment together."""
    log = ClickLog.from_arrays(list("aabbc"), list("xyxyx"), [1, 2, 2, 2, 3])
    assert log.cut_ms(0.0) == 1
    assert log.cut_ms(0.5) == log.cut_ms(0.7) == 2
    assert log.cut_ms(0.9) == log.cut_ms(1.0) == 3
    with pytest.raises(ClickLogError, match="empty"):
        ClickLog.from_arrays([], [], []).cut_ms(0.5)
