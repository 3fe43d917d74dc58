"""What Milvus Lite takes by columns is what the package would have taken, and refused, by rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_lite import CollectionSchema, DataType, FieldSchema
from milvus_lite.adapter.grpc.translators.records import fields_data_to_records
from milvus_lite.engine.collection import Collection
from milvus_lite.exceptions import MilvusLiteError
from milvus_lite.schema.arrow_builder import build_wal_data_schema
from pymilvus.grpc_gen import schema_pb2

from encoder.milvus_lite import SafeCollection
from encoder.milvus_lite_rows import RequestRows

FIELDS = [
    FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=6),
    FieldSchema("version", DataType.INT64),
    FieldSchema("weight", DataType.FLOAT, nullable=True),
    FieldSchema("vector", DataType.FLOAT_VECTOR, dim=2),
]
SCHEMA = CollectionSchema(fields=FIELDS)

floats = st.floats(width=32)
keys = st.text("aé漢", min_size=1, max_size=6)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[Any], int]:
    """Fields as pymilvus sends them, and how many rows they say they have."""
    size = draw(st.integers(1, 5))

    def some(values: st.SearchStrategy[Any], count: int = size) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    fields = [schema_pb2.FieldData(field_name=one.name) for one in FIELDS]
    fields[0].type, fields[1].type, fields[2].type, fields[3].type = 21, 5, 10, 101
    fields[0].scalars.string_data.data.extend(some(keys))
    fields[1].scalars.long_data.data.extend(some(st.integers(-(2**63), 2**63 - 1)))
    fields[2].scalars.float_data.data.extend(some(floats))
    fields[3].vectors.dim = 2
    fields[3].vectors.float_vector.data.extend(some(floats, 2 * size))
    return draw(st.permutations(fields)), size


def inserted(
    kind: type[Collection], schema: CollectionSchema, rows: Any
) -> tuple[list[Any], list[dict[str, Any]]]:
    """The keys that are answered, and all rows as they are read."""
    with tempfile.TemporaryDirectory() as folder:
        collection = kind("rows", str(Path(folder)), schema)
        try:
            collection.load()
            answer = collection.insert(rows)
            return answer, sorted(collection.query(None), key=lambda row: str(row["id"]))
        finally:
            collection.close()


@settings(max_examples=30)
@given(requests())
def test_rows_are_those_of_the_package(request: tuple[list[Any], int]) -> None:
    """Whatever the order of the fields, and if a key comes twice."""
    fields, size = request
    rows = RequestRows(fields, size)
    expected = inserted(Collection, SCHEMA, fields_data_to_records(fields, size))
    assert rows.columns(SCHEMA, build_wal_data_schema(SCHEMA)) is not None
    assert repr(inserted(SafeCollection, SCHEMA, rows)) == repr(expected)


def changed(name: str) -> tuple[list[Any], CollectionSchema]:
    """Two rows, with something about them that is not plain, and the collection's schema."""
    fields = {one.name: schema_pb2.FieldData(field_name=one.name) for one in FIELDS}
    for field, kind in zip(fields.values(), (21, 5, 10, 101), strict=True):
        field.type = kind
    fields["id"].scalars.string_data.data.extend(["a", "b"])
    fields["version"].scalars.long_data.data.extend([1, 2])
    fields["weight"].scalars.float_data.data.extend([0.5, 0.25])
    fields["vector"].vectors.dim = 2
    fields["vector"].vectors.float_vector.data.extend([1.0, 2.0, 3.0, 4.0])
    schema = SCHEMA
    if name == "a null":
        fields["weight"].valid_data.extend([True, False])
    elif name == "a field less":
        del fields["version"]
    elif name == "a nullable field less":
        del fields["weight"]
    elif name == "a field more":
        fields["more"] = schema_pb2.FieldData(field_name="more", type=5)
        fields["more"].scalars.long_data.data.extend([1, 2])
    elif name == "a field more, as it may":
        schema = CollectionSchema(fields=FIELDS, enable_dynamic_field=True)
        fields["$meta"] = schema_pb2.FieldData(field_name="$meta", type=23, is_dynamic=True)
        fields["$meta"].scalars.json_data.data.extend([b'{"more": 1}', b"{}"])
    elif name == "a long key":
        fields["id"].scalars.string_data.data[1] = "1234567"
    elif name == "another type":
        fields["version"].type = 10
        fields["version"].scalars.float_data.data.extend([1.0, 2.0])
    elif name == "another width":
        fields["vector"].vectors.dim = 4
    elif name == "a number less":
        del fields["vector"].vectors.float_vector.data[3]
    elif name == "a value less":
        del fields["version"].scalars.long_data.data[1]
    return list(fields.values()), schema


@pytest.mark.parametrize(
    "name",
    [
        "a null",
        "a field less",
        "a nullable field less",
        "a field more",
        "a field more, as it may",
        "a long key",
        "another type",
        "another width",
        "a number less",
        "a value less",
    ],
)
def test_what_is_not_plain_goes_the_way_of_the_package(name: str) -> None:
    """It is stored, or refused in the same words."""
    fields, schema = changed(name)

    def outcome(kind: type[Collection], rows: Any) -> str:
        try:
            return repr(inserted(kind, schema, rows() if callable(rows) else rows))
        except MilvusLiteError as exc:
            return repr(exc)

    expected = outcome(Collection, lambda: fields_data_to_records(fields, 2))
    assert outcome(SafeCollection, RequestRows(fields, 2)) == expected
