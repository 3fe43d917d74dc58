"""Fields of the items that are trained on: their vocabularies, and which item has which value.

N items, V values that all fields have together, D vector width, E pairs of an item and a value.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encoder.item_fields import FieldValue, ItemField

Kind = Literal["value", "words", "band"]
Item = Mapping[str, FieldValue]
BANDS: Final = 10
FEWEST_ITEMS: Final = 2


def learn_fields(kinds: Mapping[str, Kind], items: Sequence[Item]) -> tuple[ItemField, ...]:
    """Vocabularies of what some items have.

    A value that fewer than `FEWEST_ITEMS` items have is left out: it would be a second id. Bands
    are `BANDS` quantiles of the numbers.

    Args:
        kinds: field name to kind, see `ItemField`.
        items: what is known of each item; a missing key is a value that is not known.

    Raises:
        ValueError: a value is not of its field's kind; names the field.
    """
    return tuple(
        _learned(name, kind, [item.get(name) for item in items]) for name, kind in kinds.items()
    )


def _learned(name: str, kind: Kind, values: list[FieldValue]) -> ItemField:
    bare = ItemField(name=name, kind=kind)
    if kind == "band":
        numbers = [n for value in values if (n := bare.number(value)) is not None]
        inner = np.arange(1, BANDS) / BANDS
        edges = np.unique(np.quantile(numbers, inner)) if numbers else np.zeros(0)
        return ItemField(name=name, kind=kind, edges=tuple(edges.tolist()))
    counts = Counter(part for value in values for part in bare.parts(value))
    kept = sorted(part for part, items in counts.items() if items >= FEWEST_ITEMS)
    return ItemField(name=name, kind=kind, values=tuple(kept))


@dataclass(frozen=True)
class ItemFields:
    """Which values each of N items has, as a sparse matrix that averages within a field.

    Attributes:
        fields: their codes follow one another in V columns.
        rows: int64 (E,), ascending, 1..N as in the item table.
        columns: int64 (E,).
        shares: float32 (E,), one over how many values of the field the item has.
        present: float32 (N+1,), of how many fields something is known; 0 for row 0.
    """

    fields: tuple[ItemField, ...]
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]
    present: npt.NDArray[np.float32]

    @classmethod
    def of(cls, fields: Sequence[ItemField], items: Sequence[Item]) -> "ItemFields":
        """Look up the values of items, which get rows 1..N in the order given.

        Raises:
            ValueError: a value is not of its field's kind; names the field.
        """
        rows: list[int] = []
        columns: list[int] = []
        shares: list[float] = []
        present = np.zeros(len(items) + 1, np.float32)
        for row, item in enumerate(items, start=1):
            start = 0
            for field in fields:
                codes = field.codes(item.get(field.name))
                rows += [row] * len(codes)
                columns += [start + code for code in codes]
                shares += [1 / len(codes) for _ in codes]
                present[row] += bool(codes)
                start += field.size
        return cls(
            tuple(fields),
            np.array(rows, np.int64),
            np.array(columns, np.int64),
            np.array(shares, np.float32),
            present,
        )

    def __len__(self) -> int:
        return len(self.present) - 1

    @property
    def values(self) -> int:
        """V."""
        return sum(field.size for field in self.fields)

    def some(self, rows: npt.NDArray[np.int64]) -> "ItemFields":
        """The fields of some items, which get rows 1.. in the order given (each at most once)."""
        place = np.zeros(len(self) + 1, np.int64)
        place[rows] = np.arange(1, len(rows) + 1)
        found = place[self.rows]
        order = np.argsort(found, kind="stable")
        order = order[found[order] > 0]
        return ItemFields(
            self.fields,
            found[order],
            self.columns[order],
            self.shares[order],
            np.concatenate([self.present[:1], self.present[rows]]),
        )


class FieldSums:
    """Each item's sum over its fields of the average over the field's values.

    Args:
        fields: of N items.
    """

    def __init__(self, fields: ItemFields) -> None:
        self.fields = fields.fields
        self.present = torch.from_numpy(fields.present).unsqueeze(1)
        """float32 (N+1, 1)."""
        size = (len(fields) + 1, fields.values)
        self._matrix = _csr(fields.rows, fields.columns, fields.shares, size)
        self._turned = _csr(fields.columns, fields.rows, fields.shares, size[::-1])

    def of(self, vectors: Tensor) -> Tensor:
        """Vectors of values, float32 (V, D), to sums, float32 (N+1, D)."""
        return _Multiply.apply(self._matrix, self._turned, vectors)  # type: ignore[no-any-return]


def _csr(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    size: tuple[int, ...],
) -> Tensor:
    order = np.lexsort((columns, rows))
    starts = np.searchsorted(rows[order], np.arange(size[0] + 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            torch.from_numpy(columns[order]),
            torch.from_numpy(values[order]),
            size=size,
            check_invariants=True,
        )


class _Multiply(torch.autograd.Function):
    """A sparse matrix, given both ways round, times a dense one."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, turned: Tensor, vectors: Tensor) -> Tensor:
        ctx.turned = turned
        return matrix @ vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.turned @ gradients[0]
