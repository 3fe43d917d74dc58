"""What counts as drift: what users would notice, and nothing that a space is free to do."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoder.mind_encoder import InterestBatch
from encoder.nearest import nearest_rows
from mindstream.drift import cosines, coverage, strongest_changed

WIDTH, ITEMS, SLOTS = 8, 90, 3
seeds = st.integers(0, 2**32 - 1)


def unit(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return found


def made(
    rng: np.random.Generator, users: int = 12, number: int = ITEMS
) -> tuple[InterestBatch, np.ndarray]:
    """Users of 0 to 3 interests, each at an item, and items of which no two are alike."""
    items = unit(rng.normal(size=(number, WIDTH)))
    counts = rng.integers(0, SLOTS + 1, users)
    used = np.arange(SLOTS) < counts[:, None]
    vectors = np.where(used[:, :, None], items[rng.integers(0, number, (users, SLOTS))], 0)
    weights = np.where(used, rng.permuted(np.tile([0.5, 0.3, 0.2], (users, 1)), axis=1), 0)
    return batch(vectors, counts, weights), items


def batch(vectors: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> InterestBatch:
    none = np.zeros((len(counts), 0), np.int64)
    return InterestBatch(vectors.astype(np.float32), counts, weights.astype(np.float32), none, none)


@given(seeds)
def test_turning_a_space_or_numbering_slots_anew_changes_nobody(seed: int) -> None:
    """Neither is anything that a user could notice."""
    rng = np.random.default_rng(seed)
    before, items = made(rng)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    for user, count in enumerate(before.counts.tolist()):
        order = rng.permutation(count)
        before.vectors[user, :count] = before.vectors[user, order]
        before.weights[user, :count] = before.weights[user, order]
    after = dataclasses.replace(before, vectors=before.vectors @ turn)
    changed = strongest_changed(before, after, items, items @ turn)
    assert len(changed) == np.count_nonzero(before.counts)
    assert not changed.any()


@given(seeds)
def test_an_interest_among_other_items_has_changed(seed: int) -> None:
    """Where every item has come to lie elsewhere, most users' interests lead elsewhere."""
    rng = np.random.default_rng(seed)
    before, items = made(rng, users=40, number=20 * ITEMS)
    changed = strongest_changed(before, before, items, items[rng.permutation(len(items))])
    assert changed.mean() > 0.8


def test_the_weight_decides_which_interest_is_compared() -> None:
    """A user whose weights change places has another strongest interest; one with one has not."""
    items = np.eye(WIDTH, dtype=np.float32)
    vectors = np.tile(items[:2], (2, 1, 1))
    one = batch(vectors, np.array([2, 1]), np.array([[0.8, 0.2], [1.0, 0.0]]))
    other = batch(vectors, np.array([2, 1]), np.array([[0.2, 0.8], [1.0, 0.0]]))
    assert strongest_changed(one, other, items, items, n=1).tolist() == [True, False]


def test_users_without_interests_in_one_release_are_not_compared() -> None:
    """Their items became known or unknown; that is no change of an interest."""
    items = np.eye(WIDTH, dtype=np.float32)
    one = batch(items[:2, None], np.array([1, 0]), np.array([[1.0], [0.0]]))
    other = batch(items[:2, None], np.array([1, 1]), np.array([[1.0], [1.0]]))
    assert strongest_changed(one, other, items, items).tolist() == [False]


@given(seeds, st.integers(1, ITEMS + 5), st.integers(1, ITEMS))
def test_the_nearest_items_are_those_of_a_full_sort(seed: int, n: int, items: int) -> None:
    """Best first, by the best interest in use; none for a user without interests."""
    users, table = made(np.random.default_rng(seed))
    table = table[:items]
    found = nearest_rows(users.vectors, users.counts, table, n)
    assert found.shape == (len(users.counts), min(n, items))
    for user, count in enumerate(users.counts.tolist()):
        if not count:
            assert (found[user] == -1).all()
            continue
        scores = (users.vectors[user, :count] @ table.T).max(axis=0)
        assert len(set(found[user].tolist())) == len(found[user])
        np.testing.assert_allclose(
            scores[found[user]], np.sort(scores)[::-1][:n], rtol=0, atol=1e-6
        )


@given(seeds, st.integers(0, 7), st.integers(0, ITEMS))
def test_further_items_are_found_and_those_left_out_are_not(
    seed: int, further: int, left: int
) -> None:
    """As in one table of all of them, without those that are left out."""
    rng = np.random.default_rng(seed)
    users, table = made(rng)
    kept = np.sort(rng.choice(ITEMS, ITEMS - left, replace=False))
    found = nearest_rows(
        users.vectors,
        users.counts,
        table[: ITEMS - further],
        20,
        further=table[ITEMS - further :],
        left_out=np.setdiff1d(np.arange(ITEMS), kept),
    )
    expected = nearest_rows(users.vectors, users.counts, table[kept], 20)
    assert found.shape == expected.shape
    for user in np.flatnonzero(users.counts):
        assert set(found[user].tolist()) <= set(kept.tolist())
        scores = (users.vectors[user, : users.counts[user]] @ table.T).max(axis=0)
        np.testing.assert_allclose(
            scores[found[user]], scores[kept[expected[user]]], rtol=0, atol=1e-6
        )


@given(seeds)
def test_the_cosine_of_interests_is_the_mean_over_pairs(seed: int) -> None:
    """Over users with several, each counting once; 1 where all are the same."""
    users, _ = made(np.random.default_rng(seed))
    several = []
    for vectors, count in zip(users.vectors, users.counts.tolist(), strict=True):
        pairs = [vectors[p] @ vectors[q] for p in range(count) for q in range(count) if p != q]
        several += [np.mean(pairs)] if pairs else []
    assert np.isclose(users.mean_cosine(), np.mean(several or [0.0]), atol=1e-5)
    collapsed = np.zeros_like(users.vectors)
    collapsed[:] = unit(np.ones(WIDTH))
    collapsed[np.arange(SLOTS) >= users.counts[:, None]] = 0
    one = dataclasses.replace(users, vectors=collapsed)
    assert np.isclose(one.mean_cosine(), float((users.counts > 1).any()), atol=1e-5)


def test_coverage_counts_an_item_once_however_many_it_is_near_to() -> None:
    """Two users at one item cover as much as one does; nobody covers nothing."""
    items = np.eye(WIDTH, dtype=np.float32)
    ones = np.array([[1.0], [1.0]])
    assert coverage(batch(items[[3, 3], None], np.array([1, 1]), ones), items, n=1) == 1 / WIDTH
    assert coverage(batch(items[[3, 4], None], np.array([1, 1]), ones), items, n=1) == 2 / WIDTH
    assert coverage(batch(items[[3, 4], None], np.array([0, 0]), ones), items, n=1) == 0
    assert coverage(batch(items[[3, 4], None], np.array([1, 1]), ones), items[:0], n=1) == 0


def test_items_are_compared_by_direction_alone() -> None:
    """Lengths do not count, and an item without a vector has no cosine."""
    one = np.array([[1, 0], [0, 2], [0, 0]], np.float32)
    other = np.array([[3, 0], [1, 0], [1, 1]], np.float32)
    assert cosines(one, other).tolist() == [1.0, 0.0]
