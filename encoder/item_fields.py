"""What is known about items beside their clicks, and vectors for items that have nothing else.

F fields, V values that all fields have together, D vector width.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

FieldValue = str | float | Iterable[str] | None
"""Text, a number, several values, or None where it is not known."""

_WORD: Final = re.compile(r"\w+")


class ItemField(BaseModel):
    """One field: which values it has, and which of them an item has.

    Attributes:
        name: the key it has in an item's mapping.
        kind: "value" for one or several values taken as they are (a brand, categories), "words"
            for a text, "band" for a number.
        values: of the first two kinds, distinct; a code is a position among them.
        edges: of bands, ascending; a code is how many of them the number reaches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["value", "words", "band"]
    values: tuple[str, ...] = ()
    edges: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _is_sound(self) -> "ItemField":
        if self.kind == "band":
            if self.values or any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
                raise ValueError(f"field {self.name}: a band has ascending edges and no values")
        elif self.edges or len(set(self.values)) < len(self.values):
            raise ValueError(f"field {self.name}: a {self.kind} has distinct values and no edges")
        return self

    @property
    def size(self) -> int:
        """How many codes there are."""
        return len(self.edges) + 1 if self.kind == "band" else len(self.values)

    def parts(self, value: FieldValue) -> list[str]:
        """What `values` is looked up for: an item's words, or its values; each once, in order.

        Raises:
            ValueError: the value is not of this kind.
        """
        if value is None:
            return []
        if isinstance(value, str):
            found = _WORD.findall(value.lower()) if self.kind == "words" else [value]
        elif isinstance(value, Iterable) and self.kind == "value":
            found = list(value)
        else:
            raise ValueError(f"field {self.name}: {value!r} is not {_WANTED[self.kind]}")
        if not all(isinstance(part, str) for part in found):
            raise ValueError(f"field {self.name}: {value!r} holds something that is no text")
        return list(dict.fromkeys(found))

    def number(self, value: FieldValue) -> float | None:
        """The number of a band; None where it is not known.

        Raises:
            ValueError: the value is not a number.
        """
        if value is None:
            return None
        if isinstance(value, str | Iterable):
            raise ValueError(f"field {self.name}: {value!r} is not {_WANTED[self.kind]}")
        return None if math.isnan(value) else float(value)

    def codes(self, value: FieldValue) -> list[int]:
        """Ascending codes of what is known of a value; empty if nothing is.

        Raises:
            ValueError: the value is not of this kind.
        """
        if self.kind == "band":
            number = self.number(value)
            return [] if number is None else [int(np.searchsorted(self.edges, number, "right"))]
        place = self._place
        return sorted(place[part] for part in self.parts(value) if part in place)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {value: code for code, value in enumerate(self.values)}


_WANTED: Final = {"value": "a text or several", "words": "a text", "band": "a number"}


class ItemFieldsRecord(BaseModel):
    """The fields of a release as JSON; their vectors lie beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[ItemField, ...]
    unit: bool

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "ItemFieldsRecord":
        names = [one.name for one in self.fields]
        if len(set(names)) < len(names):
            raise ValueError(f"fields have one name twice: {', '.join(names)}")
        return self


@dataclass(frozen=True)
class ItemFieldVectors:
    """Vectors of field values: what an item's vector is made of when it has no clicks.

    Attributes:
        fields: F fields, each with as many rows of `vectors` as it has codes, one after another.
        vectors: float32 (V, D).
        unit: an item's vector has length 1.
    """

    fields: tuple[ItemField, ...]
    vectors: npt.NDArray[np.float32] = field(repr=False)
    unit: bool = True

    def __post_init__(self) -> None:
        values = sum(one.size for one in self.fields)
        if self.vectors.ndim != 2 or len(self.vectors) != values:
            raise ValueError(
                f"the fields have {values} values, so their vectors are of as many rows, not of "
                f"shape {self.vectors.shape}"
            )

    def vector(self, item: Mapping[str, FieldValue]) -> npt.NDArray[np.float32]:
        """The vector of an item that nobody has clicked, in the space of the release's items.

        The average over its fields of the average over a field's values, as in MIND's embedding and
        pooling layer (Li et al., CIKM 2019), without the id. Fields of which nothing is known do
        not count, and keys that are no field are ignored.

        Returns:
            float32 (D,); zeros for an item of which nothing is known.

        Raises:
            ValueError: a value is not of its field's kind; names the field.
        """
        starts = accumulate((one.size for one in self.fields), initial=0)
        means = [
            self.vectors[[start + code for code in codes]].mean(axis=0, dtype=np.float64)
            for start, one in zip(starts, self.fields, strict=False)
            if (codes := one.codes(item.get(one.name)))
        ]
        if not means:
            return np.zeros(self.vectors.shape[1], np.float32)
        mean = np.mean(means, axis=0)
        length = float(np.linalg.norm(mean))
        return np.asarray(mean / length if self.unit and length else mean, np.float32)
