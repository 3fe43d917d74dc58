"""A small collection of Milvus Lite."""

from typing import Any

from milvus_lite import CollectionSchema, DataType, FieldSchema
from milvus_lite.db import MilvusLite

from encoder.milvus_lite import SafeCollection

IDS = [f"row-{number}" for number in range(40)]


def made(database: MilvusLite, ids: list[str] = IDS) -> SafeCollection:
    """With rows of version 1, all of them in memory."""
    fields = [
        FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=40),
        FieldSchema("version", DataType.INT64),
        FieldSchema("vector", DataType.FLOAT_VECTOR, dim=2),
    ]
    collection = database.create_collection("rows", CollectionSchema(fields=fields))
    collection.load()
    collection.insert(versions(1, ids))
    assert isinstance(collection, SafeCollection)
    return collection


def versions(version: int, ids: list[str] = IDS) -> list[dict[str, Any]]:
    """Rows of one version."""
    return [{"id": one, "version": version, "vector": [1.0, version]} for one in ids]
