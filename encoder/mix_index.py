"""How a release's candidates are scored by more than interests, as readers find it in the store.

`mix_<release>`, which releases without a mix do not have, holds the parameters in one row and what
recent popularity counts in a row for each item that was clicked of late.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType

from encoder.click import MAX_ID_BYTES
from encoder.milvus_store import MilvusStore
from encoder.mix import Mix

_PARAMETERS: Final = "mix"
_ITEM: Final = "item:"  # before the id, so that no item is taken for the parameters
_LONGEST: Final = 1024  # of the parameters as JSON
_WIDTH: Final = 2  # Milvus wants a vector in every collection
_ROWS_AT_ONCE: Final = 20_000
_WRITE_BUDGET_S: Final = 60.0


@dataclass(frozen=True)
class StoredMix:
    """A release's mix.

    Attributes:
        mix: its parameters.
        popularity: by item id, what recent popularity counts; 0 for items that it does not have.
    """

    mix: Mix
    popularity: dict[str, float]

    @cached_property
    def most_popular(self) -> list[str]:
        """Their ids, by how much."""
        return sorted(self.popularity, key=lambda item_id: (-self.popularity[item_id], item_id))


class MixIndex:
    """The mixes of releases in one store. Every call may raise Unavailable."""

    def __init__(self, store: MilvusStore) -> None:
        self._store = store

    def write(
        self, release: str, mix: Mix, item_ids: Sequence[str], popularity: NDArray[np.float32]
    ) -> None:
        """Write a release's mix; may be repeated with the same outcome.

        Args:
            release: whose it is.
            mix: its parameters.
            item_ids: N distinct ids.
            popularity: float32 (N,), what recent popularity counts.
        """
        name = _mix_of(release)
        scalars: dict[str, tuple[DataType, dict[str, int]]] = {
            "value": (DataType.FLOAT, {}),
            "parameters": (DataType.VARCHAR, {"max_length": _LONGEST}),
        }
        key = ("key", MAX_ID_BYTES + len(_ITEM))
        self._store.create(name, key, scalars, _WIDTH, index_type="FLAT")
        rows = np.flatnonzero(popularity)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            keys = [_ITEM + item_ids[row] for row in some.tolist()]
            self._upsert(name, keys, popularity[some], "")
        # Last: readers that find the parameters find all.
        self._upsert(name, [_PARAMETERS], np.zeros(1, np.float32), mix.model_dump_json())
        self._store.flush(name)

    def _upsert(
        self, name: str, keys: list[str], values: NDArray[np.float32], parameters: str
    ) -> None:
        columns = {
            "key": keys,
            "value": values,
            "parameters": [parameters] * len(keys),
            "vector": np.ones((len(keys), _WIDTH), np.float32),
        }
        self._store.upsert(name, columns, deadline=time.monotonic() + _WRITE_BUDGET_S)

    def read(self, release: str) -> StoredMix | None:
        """A release's mix; None where it has none."""
        name = _mix_of(release)
        if not self._store.exist(name):
            return None
        mix: Mix | None = None
        popularity = {}
        for row in self._store.rows(name, "key", ("value", "parameters")):
            if row["key"] == _PARAMETERS:
                mix = Mix.model_validate_json(row["parameters"])
            else:
                popularity[row["key"].removeprefix(_ITEM)] = float(row["value"])
        return None if mix is None else StoredMix(mix, popularity)

    def drop(self, release: str) -> None:
        """Drop a release's mix; none is no error."""
        self._store.drop(_mix_of(release))


def _mix_of(release: str) -> str:
    return f"mix_{release}"
