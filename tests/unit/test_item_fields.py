"""Fields of items: what is learned of them, which codes an item has, and its vector from them."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from encoder.item_fields import ItemField, ItemFieldsRecord, ItemFieldVectors
from training.item_fields import Item, ItemFields, Kind, learn_fields

KINDS: dict[str, Kind] = {"title": "words", "brand": "value", "price": "band"}
ITEMS: list[Item] = [
    {"title": "Red CUP, red!", "brand": "acme", "price": 1.0},
    {"title": "blue cup", "brand": ["acme", "best"], "price": 2.0},
    {"title": "Red bowl", "brand": "best", "price": None},
    {"title": None, "price": 100.0},
]


def test_vocabularies_are_what_some_items_have() -> None:
    """Words in lower case; a value of a single item is left out; bands are quantiles."""
    title, brand, price = learn_fields(KINDS, ITEMS)
    assert title.values == ("cup", "red")
    assert brand.values == ("acme", "best")
    assert price.edges == pytest.approx(np.quantile([1.0, 2.0, 100.0], np.arange(1, 10) / 10))


def test_codes_are_of_what_is_known() -> None:
    """Each value once; unknown and missing values have none; a band includes its lower edge."""
    title, brand, _ = learn_fields(KINDS, ITEMS)
    assert title.codes("Red red CUPS cup") == [0, 1]
    assert brand.codes(["best", "unknown", "best"]) == [1]
    assert title.codes(None) == brand.codes("unknown") == []
    price = ItemField(name="price", kind="band", edges=(1.0, 2.0))
    assert [price.codes(value) for value in (0.5, 1.0, 1.5, 2, 9.0)] == [[0], [1], [1], [2], [2]]
    assert price.codes(float("nan")) == price.codes(None) == []


@pytest.mark.parametrize(
    ("item", "name"),
    [({"title": 3}, "title"), ({"brand": [1]}, "brand"), ({"price": "9"}, "price")],
)
def test_a_value_of_another_kind_is_refused(item: dict[str, Any], name: str) -> None:
    """And the field is named."""
    with pytest.raises(ValueError, match=f"field {name}"):
        ItemFields.of(learn_fields(KINDS, ITEMS), [item])


def test_a_matrix_averages_within_fields() -> None:
    """An item's values of a field share a weight of one; fields without a known value have none."""
    fields = learn_fields(KINDS, ITEMS)
    found = ItemFields.of(fields, ITEMS)
    dense = np.zeros((len(ITEMS) + 1, found.values))
    dense[found.rows, found.columns] = found.shares
    assert dense[2, :4].tolist() == [1.0, 0.0, 0.5, 0.5]
    assert dense[3, :4].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert dense[3, 4:].sum() == 0
    assert found.present.tolist() == [0, 3, 3, 2, 1]
    assert dense.sum(axis=1).tolist() == found.present.tolist()


def test_some_items_are_renumbered() -> None:
    """In the order asked for."""
    fields = learn_fields(KINDS, ITEMS)
    found = ItemFields.of(fields, ITEMS).some(np.array([4, 2]))
    expected = ItemFields.of(fields, [ITEMS[3], ITEMS[1]])
    for name in ("rows", "columns", "shares", "present"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_new_item_is_the_average_of_its_fields() -> None:
    """By hand: each field's mean counts once, whatever the number of its values."""
    fields = (
        ItemField(name="brand", kind="value", values=("a", "b")),
        ItemField(name="price", kind="band", edges=(5.0,)),
    )
    vectors = np.array([[2, 0], [0, 2], [7, 7], [1, 3]], np.float32)
    raw = ItemFieldVectors(fields, vectors, unit=False)
    assert raw.vector({"brand": ["a", "b"], "price": 6, "else": "ignored"}).tolist() == [1, 2]
    assert raw.vector({"brand": "b"}).tolist() == [0, 2]
    assert raw.vector({"brand": "c"}).tolist() == [0, 0]
    one = ItemFieldVectors(fields, vectors).vector({"price": 5.0})
    assert one.dtype == np.float32
    assert one == pytest.approx([1 / np.sqrt(10), 3 / np.sqrt(10)])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"kind": "band", "edges": (2.0, 1.0)}, "ascending"),
        ({"kind": "band", "edges": (1.0, float("nan"))}, "finite"),
        ({"kind": "band", "values": ("a",)}, "no values"),
        ({"kind": "value", "values": ("a", "a")}, "distinct"),
        ({"kind": "words", "edges": (1.0,)}, "no edges"),
    ],
)
def test_fields_that_make_no_sense_are_refused(field: dict[str, Any], message: str) -> None:
    """Their codes would be ambiguous."""
    with pytest.raises(ValidationError, match=message):
        ItemField.model_validate({"name": "x"} | field)


def test_what_does_not_fit_together_is_refused() -> None:
    """Vectors of another number of values, and two fields of one name."""
    field = ItemField(name="brand", kind="value", values=("a", "b"))
    with pytest.raises(ValueError, match="2 values"):
        ItemFieldVectors((field,), np.zeros((3, 4), np.float32))
    with pytest.raises(ValidationError, match="one name twice"):
        ItemFieldsRecord(fields=(field, field), unit=True)
