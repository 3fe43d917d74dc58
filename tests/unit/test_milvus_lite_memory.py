"""What leaves Milvus Lite's memory, and is searched in it, is what the package itself has."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from milvus_lite import CollectionSchema, DataType, FieldSchema
from milvus_lite.constants import ALL_PARTITIONS
from milvus_lite.schema.arrow_builder import build_wal_data_schema, build_wal_delta_schema
from milvus_lite.storage.memtable import MemTable

from encoder.milvus_lite_memory import ColumnMemTable

SCHEMA = CollectionSchema(
    fields=[
        FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=40),
        FieldSchema("version", DataType.INT64, nullable=True),
        FieldSchema("vector", DataType.FLOAT_VECTOR, dim=2),
    ]
)
PARTITIONS = ["_default", "other"]

ids = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5)
inserts = st.tuples(st.just("insert"), st.sampled_from(PARTITIONS), ids)
deletes = st.tuples(st.just("delete"), st.sampled_from([*PARTITIONS, ALL_PARTITIONS]), ids)


def apply(
    memory: MemTable,
    seq: int,
    call: str,
    partition: str,
    keys: list[str],
    *,
    schema: CollectionSchema = SCHEMA,
) -> int:
    """One request; the next number after it."""
    size = len(keys)
    columns: dict[str, list[object]] = {"id": [*keys], "_partition": [partition] * size}
    if call == "delete":
        columns["_seq"] = [seq] * size
        deletion = build_wal_delta_schema(schema)
        memory.apply_delete(pa.RecordBatch.from_pydict(columns, schema=deletion))
        return seq + 1
    columns["_seq"] = list(range(seq, seq + size))
    columns["version"] = [None if at % 2 else at for at in range(seq, seq + size)]
    nullable = schema.fields[2].nullable
    columns["vector"] = [
        None if nullable and at % 3 else [float(at), 1.0] for at in range(seq, seq + size)
    ]
    insertion = build_wal_data_schema(schema)
    memory.apply_insert(pa.RecordBatch.from_pydict(columns, schema=insertion))
    return seq + size


@given(st.lists(inserts | deletes, max_size=12), st.sampled_from([PARTITIONS, None]))
def test_rows_and_deletions_are_those_of_the_package(
    calls: list[tuple[str, str, list[str]]], known: list[str] | None
) -> None:
    """In the same order, of the same types; and memory can still be read."""
    package, ours = MemTable(SCHEMA), ColumnMemTable(SCHEMA)
    seq = 0
    for call in calls:
        apply(package, seq, *call)
        seq = apply(ours, seq, *call)
    expected, found = package.flush(known), ours.flush(known)
    assert found.keys() == expected.keys()
    for partition, tables in expected.items():
        for one, other in zip(tables, found[partition], strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert other.schema.equals(one.schema)
                assert other.equals(one)
    assert ours.get_active_records() == package.get_active_records()


@pytest.mark.parametrize("nullable", [False, True])
@given(
    calls=st.lists(inserts | deletes, max_size=12),
    partitions=st.sampled_from([None, ["other"]]),
    table=st.booleans(),
    field=st.sampled_from([None, "vector"]),
)
def test_candidates_are_those_of_the_package(
    nullable: bool,
    calls: list[tuple[str, str, list[str]]],
    partitions: list[str] | None,
    table: bool,
    field: str | None,
) -> None:
    """In the same order, also where vectors may be missing."""
    vector = FieldSchema("vector", DataType.FLOAT_VECTOR, dim=2, nullable=nullable)
    schema = CollectionSchema(fields=[*SCHEMA.fields[:2], vector])
    package, ours = MemTable(schema), ColumnMemTable(schema)
    seq = 0
    for call in calls:
        apply(package, seq, *call, schema=schema)
        seq = apply(ours, seq, *call, schema=schema)
    expected = package.to_search_snapshot(field, partitions, table)
    found = ours.to_search_snapshot(field, partitions, table)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1], strict=True)
    np.testing.assert_array_equal(found[2], expected[2], strict=True)
    assert found[3] == expected[3]
    assert found[4] == expected[4]
    counted = ours.to_search_arrays("vector", partitions)
    assert counted[0] == expected[0]
    np.testing.assert_array_equal(counted[1], expected[1], strict=True)


@given(st.lists(inserts | deletes, max_size=9), st.lists(inserts | deletes, max_size=9))
def test_memory_is_what_was_frozen_and_what_came_since(
    before: list[tuple[str, str, list[str]]], after: list[tuple[str, str, list[str]]]
) -> None:
    """Newer rows and deletions over older ones, as a reader puts files and memory together."""
    memory, seq = ColumnMemTable(SCHEMA), 0
    for call in before:
        seq = apply(memory, seq, *call)
    frozen = memory.frozen()
    as_it_was = frozen.pk_index_snapshot()
    for call in after:
        seq = apply(memory, seq, *call)
    rest = memory.since(frozen)
    assert frozen.pk_index_snapshot() == as_it_was
    put_together = {key: number for key, (_, _, number) in as_it_was}
    for key in rest.delete_index_snapshot():
        put_together.pop(key, None)
    put_together |= {key: number for key, (_, _, number) in rest.pk_index_snapshot()}
    assert put_together == {key: number for key, (_, _, number) in memory.pk_index_snapshot()}
    for key, _ in rest.pk_index_snapshot():
        assert rest.get(key) == memory.get(key)
    assert rest.max_seq == (memory.max_seq if after else -1)
    fresh = ColumnMemTable(SCHEMA)
    for batch in rest._insert_batches:
        fresh.apply_insert(batch)
    assert rest.estimated_memory_bytes - fresh.estimated_memory_bytes == rest._delete_bytes
