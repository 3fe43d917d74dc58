"""Inner products of a few vectors with many, and the largest: those of a plain product and sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookup.inner_products import InnerProducts, largest


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("few", [0, 1, 4, 9])
def test_products_are_those_of_all_pairs(count: int, few: int) -> None:
    """Whether or not the vectors fill the last block."""
    rng = np.random.default_rng(count)
    many = rng.standard_normal((count, 6)).astype(np.float32)
    vectors = rng.standard_normal((few, 6)).astype(np.float32)
    products = InnerProducts(many)
    assert len(products) == count
    np.testing.assert_allclose(products.of(vectors), vectors @ many.T, rtol=1e-5, atol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3000),
    different=st.sampled_from([1, 3, 10_000]),
    limit=st.integers(1, 60),
    withdrawn=st.sampled_from([0.0, 0.1, 0.99]),
)
def test_the_largest_are_those_of_a_sort(
    seed: int, count: int, different: int, limit: int, withdrawn: float
) -> None:
    """With equal scores and infinitely low ones, and whether one, few or all are asked for."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, different, count).astype(np.float32)
    scores[rng.random(count) < withdrawn] = -np.inf
    limit = min(limit, count)
    rows = largest(scores, limit)
    assert len(set(rows.tolist())) == limit
    assert scores[rows].tolist() == np.sort(scores)[::-1][:limit].tolist()
