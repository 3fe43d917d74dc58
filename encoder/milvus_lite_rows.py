"""Rows that a request brings to Milvus Lite, taken column by column.

The package makes a dict of each row, looks at each number of each vector, and puts it all into
columns again (docs/decisions/0023-milvus-lite.md). A request of the plain kind is of columns
already. Any other, and one that the package would refuse, goes its way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from milvus_lite import CollectionSchema, DataType, FieldSchema
from milvus_lite.adapter.grpc.translators.records import fields_data_to_records

_FLOAT_VECTOR: Final = 101  # pymilvus's DataType, as in all requests
_SCALARS: Final = {  # the same → the package's type, where the values are
    5: (DataType.INT64, "long_data"),
    10: (DataType.FLOAT, "float_data"),
    21: (DataType.VARCHAR, "string_data"),
}


@dataclass(frozen=True, slots=True)
class RequestRows:
    """What a request to insert or upsert brings; made in place of the package's list of rows.

    Attributes:
        fields_data: a `FieldData` for each field.
        num_rows: in each of them.
        default_timezone: for the package.
    """

    fields_data: Iterable[Any]
    num_rows: int
    default_timezone: str | None = None

    def records(self) -> list[dict[str, Any]]:
        """As the package has them; raises what it raises."""
        found: list[dict[str, Any]] = fields_data_to_records(
            self.fields_data, self.num_rows, default_timezone=self.default_timezone
        )
        return found

    def columns(self, schema: CollectionSchema, types: pa.Schema) -> dict[str, Any] | None:
        """Arrow's column of each field of the schema; None where that is not for us.

        Args:
            schema: of the collection.
            types: of its fields.
        """
        brought = {data.field_name: data for data in self.fields_data}
        fields = {field.name: field for field in schema.fields}
        if brought.keys() != fields.keys() or schema.enable_dynamic_field or schema.functions:
            return None
        columns: dict[str, Any] = {}
        for name, field in fields.items():
            column = self._column(field, brought[name], types.field(name).type)
            if column is None:
                return None
            columns[name] = column
        return columns

    def _column(self, field: FieldSchema, data: Any, type_: Any) -> Any:
        if data.valid_data or data.is_dynamic or not self.num_rows:
            return None
        if data.type == _FLOAT_VECTOR:
            return self._vectors(field, data.vectors, type_)
        dtype, slot = _SCALARS.get(data.type, (None, ""))
        values = list(getattr(data.scalars, slot).data) if slot else []
        if field.dtype is not dtype or len(values) != self.num_rows:
            return None
        if field.max_length is not None and max(map(len, values)) > field.max_length:
            return None
        return pa.array(values, type_)

    def _vectors(self, field: FieldSchema, data: Any, type_: Any) -> Any:
        size = self.num_rows * data.dim
        if field.dtype is not DataType.FLOAT_VECTOR or field.dim != data.dim or size == 0:
            return None
        if len(data.float_vector.data) != size:
            return None
        # The numbers are all that this message has: they come last, as they lie in memory.
        message = data.float_vector.SerializeToString()
        numbers = np.frombuffer(message, "<f4", offset=len(message) - 4 * size)
        return pa.FixedSizeListArray.from_arrays(pa.array(np.array(numbers)), type=type_)
