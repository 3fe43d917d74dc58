"""Requests that we fill are those that pymilvus would send."""

import numpy as np
import pytest
from pymilvus import DataType
from pymilvus.client.prepare import Prepare

from encoder.milvus_request import requests_of, write_request

FIELDS = [
    {"name": "id", "type": DataType.VARCHAR, "params": {"max_length": 64}, "is_primary": True},
    {"name": "slot", "type": DataType.INT64, "params": {}},
    {"name": "weight", "type": DataType.FLOAT, "params": {}},
    {"name": "vector", "type": DataType.FLOAT_VECTOR, "params": {"dim": 7}},
]


def columns(rows: int) -> dict[str, object]:
    rng = np.random.default_rng(rows)
    return {
        "id": [f"é{row}" for row in range(rows)],
        "slot": rng.integers(-5, 1 << 40, rows),
        "weight": rng.random(rows, np.float32),
        "vector": rng.standard_normal((rows, 7), np.float32),
    }


@pytest.mark.parametrize("rows", [1, 3, 5, 40, 900])
@pytest.mark.parametrize("of", [slice(0, 1000), slice(1, 3), slice(0, 1)])
def test_the_message_is_pymilvus_own(rows: int, of: slice) -> None:
    """For lengths of one, two and three bytes."""
    given = columns(rows)
    entities = [
        {"name": f["name"], "type": f["type"], "values": given[str(f["name"])][of]}  # type: ignore[index]
        for f in FIELDS
    ]
    if not len(entities[0]["values"]):  # type: ignore[arg-type]
        return
    upsert = Prepare.batch_upsert_param("c", entities, "", FIELDS)
    assert write_request("Upsert", "c", FIELDS, given, of) == upsert
    insert = Prepare.batch_insert_param("c", entities, "", FIELDS)
    assert write_request("Insert", "c", FIELDS, given, of) == insert


def test_vectors_that_are_not_contiguous_are_written_as_they_read() -> None:
    """A transposed or strided array is no trap."""
    given = columns(4)
    vectors = np.asarray(given["vector"])
    strided = {**given, "vector": np.asfortranarray(vectors)}
    everything = slice(0, 4)
    assert write_request("Upsert", "c", FIELDS, strided, everything) == write_request(
        "Upsert", "c", FIELDS, given, everything
    )


def test_another_type_is_refused() -> None:
    """Instead of sending nothing for it."""
    with pytest.raises(TypeError, match="field flag"):
        write_request(
            "Upsert", "c", [{"name": "flag", "type": DataType.BOOL}], {"flag": [True]}, slice(0, 1)
        )


@pytest.mark.parametrize("longest", [1, 300, 70_000])
def test_requests_are_bounded(longest: int) -> None:
    """In numbers and in text, whichever is reached first; every row is in one of them."""
    lengths = np.random.default_rng(0).integers(0, longest, 20_000)
    given = {
        "id": [str(row) for row in range(20_000)],
        "recent": ["x" * length for length in lengths.tolist()],
        "weight": np.zeros(20_000, np.float32),
        "vector": np.zeros((20_000, 400), np.float32),
    }
    runs = list(requests_of(given))
    assert [row for run in runs for row in range(run.start, run.stop)] == list(range(20_000))
    sizes = [int(lengths[run].sum()) + sum(map(len, given["id"][run])) for run in runs]  # type: ignore[arg-type]
    assert max(run.stop - run.start for run in runs) <= 5_000
    assert max(sizes) <= 8_000_000
    for run, size, after in zip(runs, sizes, runs[1:], strict=False):
        more = int(lengths[after.start]) + 5
        assert run.stop - run.start == 5_000 or size + more > 8_000_000


def test_requests_can_be_smaller() -> None:
    """By how many numbers their vectors have; never without a row."""
    given = {"id": ["a"] * 10, "vector": np.zeros((10, 4), np.float32)}
    for cells, expected in ((15, [3, 3, 3, 1]), (1, [1] * 10)):
        assert [run.stop - run.start for run in requests_of(given, cells)] == expected


def test_a_row_that_is_too_large_goes_alone() -> None:
    """The store says what is wrong with it."""
    given = {"recent": ["a", "x" * 9_000_000, "b"], "vector": np.zeros((3, 2), np.float32)}
    assert [(run.start, run.stop) for run in requests_of(given)] == [(0, 1), (1, 2), (2, 3)]
