"""Item vectors that fields are part of, and what they say of items never seen in training."""

import numpy as np
import pytest
import torch

from encoder.item_fields import ItemField
from tests.tastes import GROUPS, group_of, planted_log
from training.evaluation import search
from training.inference import encode_windows, item_vectors
from training.item_fields import FieldSums, Item, ItemFields, Kind, learn_fields
from training.item_graph import ItemGraph
from training.model import Mind, unit
from training.preset import TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences

KINDS: dict[str, Kind] = {"title": "words", "price": "band"}
ITEMS: list[Item] = [
    {"title": "red cup", "price": 1.0},
    {"title": "blue cup", "price": 2.0},
    {"title": "red blue cup"},
    {},
]
FIELDS = ItemFields.of(learn_fields(KINDS, ITEMS), ITEMS)


def graph() -> ItemGraph:
    sequences = Sequences(np.array([1, 2], np.int32), np.array([0, 2]))
    return ItemGraph.of_clicks(sequences, 4, reach=1, most=1)


def test_an_item_is_the_average_of_its_id_and_its_fields() -> None:
    """Those that it has; an item without any is its id, as in a model without fields."""
    model = Mind(4, width=6, interests=1, cosine=False, fields=FIELDS)
    assert model.field_table is not None
    blue, cup, red = model.field_table[:3]
    table = model.item_table()
    price = model.field_table[3 + FIELDS.fields[1].codes(1.0)[0]]
    torch.testing.assert_close(table[1], (model.table[1] + (red + cup) / 2 + price) / 3)
    torch.testing.assert_close(table[3], (model.table[3] + (red + cup + blue) / 3) / 2)
    torch.testing.assert_close(table[4], model.table[4])
    assert not table[0].any()


@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_a_dropped_item_without_neighbours_is_as_if_it_were_new(smoothing: float) -> None:
    """Training shows exactly what serving makes of an item's fields alone."""
    model = Mind(4, width=6, interests=1, fields=FIELDS, graph=graph(), smoothing=smoothing)
    kept = torch.tensor([[True], [False], [True], [True], [True]])
    shown = model.item_table(kept, linked=kept)
    new = model.vectors_from_fields(FIELDS)
    torch.testing.assert_close(shown[1], new[0])
    assert not torch.allclose(model.item_table()[1], new[0])
    assert not new[3].any()
    linked = model.item_table(kept)
    assert torch.allclose(linked[1], new[0]) == (smoothing == 0)


def test_other_fields_are_refused() -> None:
    """Codes of another vocabulary would be read as other values; and a model may have none."""
    model = Mind(4, width=6, interests=1, fields=FIELDS)
    field = ItemField(name="title", kind="words", values=("cup",))
    with pytest.raises(ValueError, match="not the fields"):
        model.vectors_from_fields(ItemFields.of([field], ITEMS))
    with pytest.raises(ValueError, match="not the fields"):
        Mind(4, width=6, interests=1).vectors_from_fields(FIELDS)
    with pytest.raises(ValueError, match="4 items"):
        Mind(5, width=6, interests=1, fields=FIELDS)


def test_the_sums_have_the_gradients_of_the_dense_product() -> None:
    """In value, too."""
    dense = torch.zeros(len(ITEMS) + 1, FIELDS.values)
    dense[FIELDS.rows, FIELDS.columns] = torch.from_numpy(FIELDS.shares)
    one = torch.randn(FIELDS.values, 5, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    weigh = torch.randn(len(ITEMS) + 1, 5)
    found = FieldSums(FIELDS).of(one)
    (found * weigh).sum().backward()  # type: ignore[no-untyped-call]
    (dense @ two * weigh).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, dense @ two)
    torch.testing.assert_close(one.grad, two.grad)


def test_without_fields_a_model_starts_from_the_same_bits() -> None:
    """What fields add is drawn after everything else."""
    plain = Mind(4, width=6, interests=2, hidden=8, seed=3).state_dict()
    richer = Mind(4, width=6, interests=2, hidden=8, fields=FIELDS, seed=3).state_dict()
    assert set(richer) - set(plain) == {"field_table"}
    assert all(torch.equal(value, richer[name]) for name, value in plain.items())


@pytest.mark.parametrize("cosine", [True, False])
def test_serving_makes_the_same_vectors(cosine: bool) -> None:
    """From numpy alone, to 1e-6, for every kind of item."""
    items: list[Item] = [*ITEMS, {"title": "cup unheard", "price": 99.0}, {"title": "Unheard"}]
    model = Mind(4, width=64, interests=1, cosine=cosine, fields=FIELDS)
    served = model.field_vectors()
    assert served is not None
    with torch.no_grad():
        expected = model.vectors_from_fields(ItemFields.of(FIELDS.fields, items)).numpy()
    found = np.stack([served.vector(item) for item in items])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_items_never_clicked_are_found_by_their_words() -> None:
    """A word names each taste: items of it that nobody clicked are recommended to who has it."""
    log = planted_log()
    new = {item for item in log.item_ids if item.endswith("-3")}
    known = [item for item in log.item_ids if item not in new]
    ids = known + sorted(new)
    items: list[Item] = [{"title": f"taste{group_of(item)} thing"} for item in ids]
    fields = ItemFields.of(learn_fields({"title": "words"}, items), items)
    config = TrainingConfig(
        window_length=20,
        width=16,
        interests=3,
        epochs=3.0,
        batch_size=256,
        negatives=128,
        learning_rate=0.02,
        fades=(),
    )
    sequences = Sequences.from_log(log, known)
    learned = fields.some(np.arange(1, len(known) + 1))
    model, _ = trained_model(sequences, len(known), config, fields=learned)
    with torch.no_grad():
        vectors = model.vectors_from_fields(fields.some(np.arange(len(known) + 1, len(ids) + 1)))
    windows = sequences.last_windows(20)
    interests, counts = encode_windows(model, item_vectors(model), windows, config)
    table = np.concatenate([np.zeros((1, 16), np.float32), vectors.numpy()])
    found = search(interests, counts, table, 2)
    right = 0
    for window, two in zip(windows, found.tolist(), strict=True):
        tastes = {group_of(known[row - 1]) for row in window if row}
        right += len(tastes & {group_of(ids[len(known) + row - 1]) for row in two}) / len(tastes)
    assert right / len(windows) > 0.8  # by chance: 2 / GROUPS
    assert torch.allclose(unit(vectors), vectors, atol=1e-6)
    assert len(vectors) == GROUPS
