"""Items clicked close to each other, counted and normalised as said."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.item_graph import ItemGraph, co_clicks
from training.sequences import Sequences

ITEMS = 6
users = st.lists(st.lists(st.integers(0, ITEMS), max_size=9), min_size=1, max_size=6)


def sequences(*of_users: list[int]) -> Sequences:
    rows = np.array([row for of_user in of_users for row in of_user], np.int32)
    return Sequences(rows, np.concatenate([[0], np.cumsum([len(one) for one in of_users])]))


def edges(
    of_users: list[list[int]], reach: int = 1, most: int = ITEMS
) -> dict[tuple[int, int], float]:
    ends, others, weights = co_clicks(sequences(*of_users), ITEMS, reach=reach, most=most)
    pairs = zip(ends.tolist(), others.tolist(), strict=True)
    found = dict(zip(pairs, weights.tolist(), strict=True))
    assert len(found) == len(ends)
    return found


def test_weights_by_hand() -> None:
    """Times seen together over the root of both items' sums, in both directions."""
    found = edges([[1, 2, 3], [2, 1]])
    together, apart = 2 / np.sqrt(2 * 3), 1 / np.sqrt(3 * 1)
    assert found == {
        (1, 2): pytest.approx(together),
        (2, 1): pytest.approx(together),
        (2, 3): pytest.approx(apart),
        (3, 2): pytest.approx(apart),
    }


def test_neighbours_are_of_one_user_and_within_reach() -> None:
    """The last click of one user and the first of the next have nothing to do with each other."""
    assert set(edges([[1, 2], [3, 4]])) == {(1, 2), (2, 1), (3, 4), (4, 3)}
    assert (1, 3) not in edges([[1, 2, 3]])
    assert (1, 3) in edges([[1, 2, 3]], reach=2)


def test_unknown_items_and_repetitions_are_no_edges() -> None:
    """Row 0 stands for no item, and nothing is its own neighbour."""
    assert edges([[1, 0, 1, 1], [0, 2]]) == {}


def test_an_edge_stays_if_either_end_needs_it() -> None:
    """Item 2 is everybody's only neighbour, so it keeps more than its own heaviest."""
    found = edges([[1, 2], [1, 2], [3, 2], [4, 2]], most=1)
    assert set(found) == {(1, 2), (2, 1), (3, 2), (2, 3), (4, 2), (2, 4)}
    crowded = edges([[1, 2], [1, 2], [3, 4], [3, 4], [1, 3]], most=1)
    assert (1, 3) not in crowded


@given(users, st.integers(1, 4), st.integers(1, 3))
def test_it_is_symmetric(of_users: list[list[int]], reach: int, most: int) -> None:
    """Which the gradient relies on."""
    found = edges(of_users, reach, most)
    assert all(found[other, end] == pytest.approx(weight) for (end, other), weight in found.items())
    assert all(end > 0 and other > 0 and end != other for end, other in found)


def test_smoothing_is_the_product_with_the_matrix() -> None:
    """In value and in gradient."""
    some = [[1, 2, 3, 1], [4, 2, 5], [1, 5]]
    dense = torch.zeros(ITEMS + 1, ITEMS + 1)
    for (end, other), weight in edges(some, reach=2).items():
        dense[end, other] = weight
    graph = ItemGraph.of_clicks(sequences(*some), ITEMS, reach=2, most=ITEMS)
    one = torch.randn(ITEMS + 1, 4, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    weigh = torch.randn(ITEMS + 1, 4)
    (graph.neighbours(one) * weigh).sum().backward()  # type: ignore[no-untyped-call]
    (dense @ two * weigh).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(graph.neighbours(one), dense @ two)
    torch.testing.assert_close(one.grad, two.grad)


def test_leading_vectors_are_those_of_the_whole_matrix() -> None:
    """Of all eigenvectors with a positive eigenvalue, the first; by numpy's own decomposition."""
    rng = np.random.default_rng(0)
    some = [rng.integers(1, ITEMS + 1, 40).tolist() for _ in range(3)]
    found = edges(some, reach=4)
    assert len(found) == ITEMS * (ITEMS - 1)  # all alike in their number, so damped alike
    dense = np.zeros((ITEMS + 1, ITEMS + 1))
    for (end, other), weight in found.items():
        dense[end, other] = weight / 2
    graph = ItemGraph.of_clicks(sequences(*some), ITEMS, reach=4, most=ITEMS)
    values, vectors = np.linalg.eigh(dense)
    for width in (1, 3, ITEMS, ITEMS + 2):
        leading = graph.leading_vectors(width, torch.Generator().manual_seed(0)).numpy()
        assert leading.shape == (ITEMS + 1, width)
        assert not leading[0].any()
        kept = slice(ITEMS + 1 - min(width, ITEMS), None)
        expected = (vectors[:, kept] * np.maximum(values[kept], 0)) @ vectors[:, kept].T
        assert leading @ leading.T == pytest.approx(expected, abs=1e-5)


def test_pairs_apart_do_not_take_the_leading_vectors() -> None:
    """Two groups of many items come first, however many pairs there are that stand alone."""
    groups = [list(range(1, 9)), list(range(9, 17))]
    pairs = [[item, item + 1] for item in range(17, 97, 2)]
    graph = ItemGraph.of_clicks(sequences(*groups, *pairs), 97, reach=8, most=97)
    leading = graph.leading_vectors(2, torch.Generator().manual_seed(0))
    lengths = leading.norm(dim=1)
    assert lengths[1:17].min() > 10 * lengths[17:97].max()
    likeness = leading[1:17] @ leading[1:17].T
    assert likeness[:8, :8].min() > 10 * likeness[:8, 8:].abs().max()
    assert not leading[97].any()  # without an edge
