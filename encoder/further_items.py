"""Items that a release was not trained on, with vectors made of their fields: rows after its own.

N items of the release, D vector width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from encoder.item_fields import FieldValue, ItemFieldVectors

if TYPE_CHECKING:
    from encoder.release import Release

_FIRST_ROOM: Final = 16


class FurtherItems:
    """Rows N+1 and on of one release's item table. Not for several threads at once.

    What it holds is a function of what was last put of each item, but for the numbers of the rows,
    on which no result depends.
    """

    def __init__(self, release: Release) -> None:
        """None yet."""
        self.release = release
        self._first = len(release.item_ids) + 1
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._free: list[int] = []  # rows whose item was withdrawn
        self._vectors = np.zeros((_FIRST_ROOM, release.manifest.width), np.float32)

    def __len__(self) -> int:
        """How many items are known beyond the release's own."""
        return len(self._row_of)

    def __iter__(self) -> Iterator[str]:
        """Their ids."""
        return iter(self._row_of)

    @property
    def end(self) -> int:
        """The row after the last one."""
        return self._first + len(self._ids)

    def row(self, item_id: str) -> int:
        """The item's row, 0 where it is not known here."""
        return self._row_of.get(item_id, 0)

    def item_id(self, row: int) -> str:
        """The item in a row after the release's own."""
        return self._ids[row - self._first]

    def vector(self, item_id: str) -> NDArray[np.float32] | None:
        """The item's vector, float32 (D,), trained or made of its fields; None if not known."""
        found: NDArray[np.float32] | None = None
        if (row := self.release.row_of.get(item_id)) is not None:
            found = self.release.items[row]
        elif (row := self._row_of.get(item_id)) is not None:
            found = self._vectors[row - self._first]
        return found

    @property
    def table(self) -> NDArray[np.float32]:
        """The rows from N+1 to before `end`, float32 (M, D); of those in `free` no item is."""
        return self._vectors[: len(self._ids)]

    @property
    def free(self) -> tuple[int, ...]:
        """Rows after the release's own whose item is not known any more."""
        return tuple(self._free)

    def put(self, item_id: str, fields: Mapping[str, FieldValue]) -> tuple[bool, list[str]]:
        """Say what is known of an item from now on; nothing makes it unknown again.

        An item that the release was trained on keeps its trained vector.

        Returns:
            Whether windows that hold the item may have other interests now, and what is wrong with
            the values of fields, which count as not known.
        """
        if item_id in self.release.row_of:
            return False, []
        made_of = self.release.item_fields
        if made_of is None:
            return False, []
        vector, problems = vector_of(made_of, fields)
        return self.put_vector(item_id, vector), problems

    def put_vector(self, item_id: str, vector: NDArray[np.float32] | None) -> bool:
        """Say which vector an item has from now on that the release was not trained on.

        Args:
            item_id: of such an item.
            vector: float32 (D,); None where the item is not known any more.

        Returns:
            Whether windows that hold the item may have other interests now.
        """
        before = self._row_of.get(item_id)
        if vector is None:
            if before is None:
                return False
            self._free.append(self._row_of.pop(item_id))
            return True
        if before is not None:
            held = self._vectors[before - self._first]
            if held.tobytes() == vector.tobytes():
                return False
            held[:] = vector
            return True
        row = self._new_row(item_id)
        self._row_of[item_id] = row
        self._vectors[row - self._first] = vector
        return True

    def table_of(
        self, rows: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """The part of the whole table that some rows are in; None if the release's own will do.

        Args:
            rows: of any shape; at least one.

        Returns:
            float32 (M, D), its row 0 all zeros, and the rows as rows of that, int64.
        """
        if int(rows.max()) < self._first:
            return None
        held, place = np.unique(np.append(rows.ravel(), 0), return_inverse=True)
        table = np.empty((len(held), self._vectors.shape[1]), np.float32)
        own = held < self._first
        table[own] = self.release.items[held[own]]
        table[~own] = self._vectors[held[~own] - self._first]
        return table, place[:-1].reshape(rows.shape).astype(np.int64)

    def _new_row(self, item_id: str) -> int:
        if self._free:
            row = self._free.pop()
            self._ids[row - self._first] = item_id
            return row
        if len(self._ids) == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._ids.append(item_id)
        return self._first + len(self._ids) - 1


def vector_of(
    made_of: ItemFieldVectors, fields: Mapping[str, FieldValue]
) -> tuple[NDArray[np.float32] | None, list[str]]:
    """A vector from fields, float32 (D,), without those whose values are not of their kind.

    Returns:
        None where nothing is known, and what is wrong with the values that were left out.
    """
    problems: list[str] = []
    try:
        vector = made_of.vector(fields)
    except ValueError:
        sound = dict(fields)
        for field in made_of.fields:
            try:
                field.codes(fields.get(field.name))
            except ValueError as exc:
                problems.append(str(exc))
                sound[field.name] = None
        vector = made_of.vector(sound)
    return (vector if vector.any() else None), problems
