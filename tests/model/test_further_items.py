"""Items beyond those a release was trained on count as if they had been in its table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from tests.small_items import ITEMS, field_vectors, release_with_fields

NEW = [
    {"title": "red cup"},
    {"title": "Blue", "brand": ["acme", "best"]},
    {"price": 3.5, "brand": "nobody"},
    {"price": 12},
]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_with_fields(tmp_path_factory.mktemp("release"), "fields")


def windows(users: int, rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.integers(0, rows, (users, 8))
    found[np.arange(8) >= rng.integers(0, 9, users)[:, None]] = 0
    return found


def test_they_give_the_bits_of_a_table_that_has_them(release: Release) -> None:
    """Whatever the order in which they came, and beside windows that hold none of them."""
    made_of = field_vectors()
    table = np.concatenate([release.items, [made_of.vector(fields) for fields in NEW]])
    whole = MindEncoder(
        replace(
            release,
            items=table.astype(np.float32),
            item_ids=[*release.item_ids, *map(str, range(4))],
        )
    )
    encoder = MindEncoder(release)
    order = [2, 0, 3, 1]
    for number in order:
        assert encoder.further.put(str(number), NEW[number]) == (True, [])
    rows = windows(700, ITEMS + 5)
    place = np.arange(ITEMS + 5)
    place[ITEMS + 1 :] = encoder.rows(map(str, range(4)))
    ages = np.random.default_rng(1).random(rows.shape).astype(np.float32) * 1e5
    expected, found = whole.encode(rows, ages), encoder.encode(place[rows], ages)
    assert (rows > ITEMS).any(axis=1).sum() > 100
    for name in ("vectors", "counts", "weights", "assignment", "exemplars"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_chunks_without_them_read_the_mapped_table(release: Release) -> None:
    """Nothing is gathered where the release's own rows will do."""
    encoder = MindEncoder(release)
    encoder.further.put("new", NEW[0])
    assert encoder.further.table_of(np.array([[0, 1, ITEMS]])) is None
    part = encoder.further.table_of(np.array([[0, ITEMS, ITEMS + 1], [3, 0, 0]]))
    assert part is not None
    table, rows = part
    assert rows.tolist() == [[0, 2, 3], [1, 0, 0]]
    assert not table[0].any()
    assert np.array_equal(table[1], release.items[3])


def test_what_becomes_of_an_item_follows_from_what_was_said_last(release: Release) -> None:
    """It appears, changes, and is unknown again once nothing is known of it."""
    encoder = MindEncoder(release)
    further = encoder.further
    assert further.put("new", {"brand": "nobody"}) == (False, [])
    assert further.put("new", NEW[0]) == (True, [])
    assert further.put("new", NEW[0]) == (False, [])
    assert further.put("new", NEW[1]) == (True, [])
    expected = field_vectors().vector(NEW[1])
    vector = further.vector("new")
    assert vector is not None
    assert vector.tobytes() == expected.tobytes()
    (row,) = encoder.rows(["new"]).tolist()
    assert encoder.item_ids([1, row]) == ["item-1", "new"]
    assert further.put("new", {}) == (True, [])
    assert encoder.rows(["new"]).tolist() == [0]
    assert further.vector("new") is None
    assert further.put("other", NEW[2]) == (True, [])
    assert encoder.rows(["other", "new"]).tolist() == [row, 0]  # the row is used again
    with pytest.raises(ValueError, match=f"rows must be 0..{row}"):
        encoder.encode(np.array([[row + 1]]), np.zeros((1, 1), np.float32))


def test_a_trained_item_keeps_its_vector(release: Release) -> None:
    """Whatever is said of it."""
    encoder = MindEncoder(release)
    assert encoder.further.put("item-3", NEW[0]) == (False, [])
    vector = encoder.further.vector("item-3")
    assert vector is not None
    assert np.array_equal(vector, release.items[3])
    assert len(encoder.further) == 0


def test_a_value_of_another_kind_counts_as_not_known(release: Release) -> None:
    """It is told, and the other fields count."""
    encoder = MindEncoder(release)
    changed, problems = encoder.further.put("new", {"title": 3.0, "brand": "acme"})
    assert changed
    assert len(problems) == 1
    assert "field title" in problems[0]
    vector = encoder.further.vector("new")
    assert vector is not None
    assert vector.tobytes() == field_vectors().vector({"brand": "acme"}).tobytes()


def test_a_release_without_fields_knows_none(release: Release, tmp_path: Path) -> None:
    """They stay unknown."""
    encoder = MindEncoder(replace(release, item_fields=None))
    assert encoder.further.put("new", NEW[0]) == (False, [])
    assert encoder.rows(["new"]).tolist() == [0]
