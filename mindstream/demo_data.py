"""The demonstration's clicks: real purchases of a gift shop, shipped with the project."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from encoder.click import Click

_FILE: Final = "online_retail_II.parquet"


def demo_file() -> Path:
    """The shipped Parquet file; see ATTRIBUTION.md beside it."""
    with as_file(files("mindstream") / "data" / _FILE) as path:
        return Path(path)


def demo_clicks(path: Path) -> list[Click]:
    """All purchases as clicks, in the order of the file, which is that of time."""
    table = pq.read_table(path, columns=["user_id", "item", "timestamp"])
    columns = (
        table["user_id"].cast(pa.string()).to_pylist(),
        table["item"].cast(pa.string()).to_pylist(),
        table["timestamp"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist(),
    )
    return [Click(str(u), str(i), int(t or 0)) for u, i, t in zip(*columns, strict=True)]
