"""The parts of MIND, each against the paper's formula written out."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from training.fit import build_model
from training.item_graph import ItemGraph
from training.loss import (
    NegativeSampler,
    full_softmax,
    log_sum_exp,
    log_uniform,
    popularity,
    sampled_softmax,
)
from training.model import NEVER, Mind, attend, route, slot_counts, squash, unit
from training.preset import TrainingConfig
from training.sequences import Sequences


def test_interest_numbers_follow_the_paper() -> None:
    """max(1, min(K, log2 n)), rounded down and exact at powers of two; 0 without clicks."""
    clicks = torch.arange(0, 5000)
    expected = [0, *(max(1, min(9, n.bit_length() - 1)) for n in range(1, 5000))]
    assert slot_counts(clicks, 9).tolist() == expected


def test_squash_and_unit_keep_directions() -> None:
    """Lengths become s²/(1+s²) and 1; zero stays zero, in value and in gradient."""
    vectors = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]], requires_grad=True)
    lengths = torch.tensor([25 / 26, 0.25 / 1.25, 0.0])
    torch.testing.assert_close(squash(vectors).norm(dim=1), lengths)
    torch.testing.assert_close(unit(vectors)[:2], torch.tensor([[0.6, 0.8], [0.6, -0.8]]))
    (squash(vectors) + unit(vectors)).sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_routing_is_algorithm_one() -> None:
    """Three rounds, click by click and interest by interest, give the same capsules."""
    torch.manual_seed(0)
    vectors, bilinear, logits = torch.randn(1, 5, 4), torch.randn(4, 4), torch.randn(1, 5, 3)
    mask = torch.tensor([[True, True, True, True, False]])
    vectors[~mask] = 0.0
    slots = torch.tensor([[True, True, False]])
    capsules, couplings = route(vectors, bilinear, logits, mask, slots, 3)

    behaviours = vectors @ bilinear
    b = {(i, j): float(logits[0, i, j]) for i in range(4) for j in range(2)}
    for _ in range(3):
        w = {
            (i, j): math.exp(b[i, j]) / sum(math.exp(b[i, k]) for k in range(2))
            for i in range(4)
            for j in range(2)
        }
        z = [sum(w[i, j] * behaviours[0, i] for i in range(4)) for j in range(2)]
        u = [v.norm() ** 2 / (1 + v.norm() ** 2) * v / v.norm() for v in z]  # type: ignore[union-attr]
        b = {(i, j): b[i, j] + float(u[j] @ behaviours[0, i]) for i, j in b}
    torch.testing.assert_close(capsules[0, :2], torch.stack(u))
    assert not capsules[0, 2].any()
    torch.testing.assert_close(couplings[0, :4, 0], torch.tensor([w[i, 0] for i in range(4)]))
    assert not couplings[0, 4].any()


def test_attention_is_as_published() -> None:
    """Products to the power p, softmax over the user's own interests only."""
    interests = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    slots = torch.tensor([[True, True, False]])
    target = torch.tensor([[[2.0, 1.0]]])
    weights = torch.tensor([2.0**2, 1.0**2]).softmax(dim=0)
    torch.testing.assert_close(attend(interests, slots, target, 2.0, 1.0)[0, 0], weights)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_attention_of_infinite_power_takes_the_likeliest(sign: float) -> None:
    """Also where all products are negative; and a large power comes close to it."""
    interests = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    slots = torch.ones(1, 2, dtype=torch.bool)
    target = sign * torch.tensor([[[2.0, 1.0]]])
    hard = attend(interests, slots, target, math.inf, 1.0)
    assert hard.tolist() == [[[1.0, 0.0]] if sign > 0 else [[0.0, 1.0]]]
    torch.testing.assert_close(attend(interests, slots, target, 9.0, 1.5), hard)


def test_sampled_softmax_approaches_the_full_one() -> None:
    """With the correction, many draws of any distribution give nearly the loss over all items."""
    torch.manual_seed(0)
    table = torch.randn(51, 8)
    table[0] = 0
    users, targets = torch.randn(40, 2, 8), torch.randint(1, 51, (40, 2))
    full = torch.nn.functional.cross_entropy(
        (users @ table[1:].T / 2).flatten(0, 1), targets.flatten() - 1
    )
    counts = np.random.default_rng(0).integers(100, 500, 50)
    for probabilities in (log_uniform(counts), popularity(counts, 1.0), popularity(counts, 0.0)):
        sampler = NegativeSampler(probabilities)
        drawn = sampler.draw(np.random.default_rng(0), 20_000)
        loss = sampled_softmax(users, targets, table, drawn, sampler.log_probability, 2.0)
        assert loss.item() == pytest.approx(full.item(), abs=0.05)
        uncorrected = sampled_softmax(users, targets, table, drawn, None, 2.0)
        assert uncorrected.item() > full.item() + 1


def test_the_log_of_the_sum_and_its_gradients_are_torchs_own() -> None:
    """Whatever is left out; large scores overflow nothing."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    items = torch.randn(7, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    offset = torch.randn(7, dtype=torch.float64, generator=generator)
    left_out = torch.rand(5, 7, generator=generator) < 0.3
    scores = (500 * users @ items.T + offset).masked_fill(left_out, NEVER)
    found = log_sum_exp(500 * users, items, offset, left_out)
    torch.testing.assert_close(found, scores.logsumexp(dim=1))
    assert torch.autograd.gradcheck(
        lambda users, items: log_sum_exp(users, items, offset, left_out), (users, items)
    )


def test_the_full_softmax_is_the_cross_entropy_over_all_items() -> None:
    """Padding is no item, and a missing target does not count."""
    torch.manual_seed(0)
    table, users = torch.randn(51, 8), torch.randn(40, 2, 8)
    targets = torch.randint(0, 51, (40, 2))
    real = targets > 0
    assert not real.all()
    expected = torch.nn.functional.cross_entropy(users[real] @ table[1:].T / 2, targets[real] - 1)
    torch.testing.assert_close(full_softmax(users, targets, table, 2.0), expected)
    assert full_softmax(users, torch.zeros_like(targets), table, 2.0) == 0


def test_a_click_counts_for_less_the_more_came_after_it() -> None:
    """Counting known clicks only; one that counts for nothing might as well not be there."""
    model = Mind(10, width=6, interests=1, fade=0.3)
    mask = torch.tensor([[True, False, True, True, False]])
    with torch.no_grad():
        gates = model.gates(mask)
        assert gates is not None
        torch.testing.assert_close(gates[mask], torch.tensor([-0.6, -0.3, 0.0]).exp())
        model.fade = 200.0
        vectors = torch.randn(1, 5, 6) * mask.unsqueeze(2)
        gated, _ = model.encode(vectors, mask, torch.zeros(1, 5, 1))
        newest = torch.tensor([[False, False, False, True, False]])
        alone, _ = model.encode(vectors * newest.unsqueeze(2), newest, torch.zeros(1, 5, 1))
    torch.testing.assert_close(gated, alone)


def test_an_average_is_of_the_known_clicks() -> None:
    """Through the ReLU layer; nothing without a click; and it is one interest."""
    model = Mind(9, width=6, interests=1, hidden=8, cosine=False, average=True)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    vectors = torch.randn(2, 4, 6) * mask.unsqueeze(2)
    found, couplings = model.encode(vectors, mask, torch.randn(2, 4, 1))
    expected = model.layers((vectors[0, 0] + vectors[0, 2]) / 2)
    torch.testing.assert_close(found[0, 0], expected)
    assert not found[1].any()
    assert couplings[:, :, 0].tolist() == mask.float().tolist()
    model.fade = 200.0
    newest, _ = model.encode(vectors, mask, torch.randn(2, 4, 1))
    torch.testing.assert_close(newest[0, 0], model.layers(vectors[0, 2]))
    with pytest.raises(ValueError, match="one interest"):
        Mind(9, width=6, interests=2, average=True)


def test_an_item_that_is_dropped_has_its_neighbours_vectors_only() -> None:
    """And nothing at all without a graph."""
    sequences = Sequences(np.array([1, 2], np.int32), np.array([0, 2]))
    graph = ItemGraph.of_clicks(sequences, 3, reach=1, most=1)
    model = Mind(3, width=6, interests=1, graph=graph, smoothing=2.0)
    kept = torch.tensor([[True], [False], [True], [True]])
    vectors = model.item_table(kept)
    torch.testing.assert_close(vectors[1], unit(model.table[2:3])[0])
    torch.testing.assert_close(vectors[3], unit(model.table[3:])[0])
    assert not Mind(3, width=6, interests=1).item_table(kept)[1].any()


def test_a_spectral_start_puts_neighbours_of_neighbours_together() -> None:
    """Before any training; a lone item and everything but the table are as without it."""
    users = [[1, 2, 3], [2, 4], [5, 6, 7], [6, 8]]
    rows = np.array([row for user in users for row in user], np.int32)
    starts = np.concatenate([[0], np.cumsum([len(user) for user in users])])
    config = TrainingConfig(width=64, graph_reach=2)
    plain, spectral = (
        build_model(Sequences(rows, starts), 9, changed).state_dict()
        for changed in (config, dataclasses.replace(config, spectral=True))
    )
    table = unit(spectral["table"])
    likeness = table @ table.T
    assert likeness[1:5, 1:5].min() > 0.35  # 1 and 4 have no user in common
    assert likeness[1:5, 5:].max() < 0.3
    assert (spectral["table"][[0, 9]] == plain["table"][[0, 9]]).all()
    assert all((plain[name] == spectral[name]).all() for name in plain if name != "table")


def test_missing_targets_do_not_count() -> None:
    """Row 0 among the targets changes neither the loss nor its gradient."""
    torch.manual_seed(0)
    table = torch.randn(9, 4)
    users = torch.randn(3, 1, 4)
    negatives = torch.tensor([1, 2, 3])
    one = sampled_softmax(users, torch.tensor([[4], [5], [6]]), table, negatives, None, 1.0)
    twice = users.expand(3, 2, 4)
    targets = torch.tensor([[4, 0], [5, 0], [6, 0]])
    torch.testing.assert_close(sampled_softmax(twice, targets, table, negatives, None, 1.0), one)
    assert sampled_softmax(users, torch.zeros(3, 1).long(), table, negatives, None, 1.0) == 0


def test_a_draw_of_the_target_itself_does_not_count() -> None:
    """The target is not its own negative."""
    torch.manual_seed(0)
    table, users = torch.randn(9, 4), torch.randn(3, 1, 4)
    targets = torch.tensor([[4], [4], [4]])
    without = sampled_softmax(users, targets, table, torch.tensor([1, 2, 3]), None, 1.0)
    drawn = sampled_softmax(users, targets, table, torch.tensor([1, 4, 2, 3, 4]), None, 1.0)
    torch.testing.assert_close(drawn, without)


def test_samplers_draw_as_they_say() -> None:
    """Observed shares match the probabilities, and popular items are drawn more."""
    counts = np.array([5, 100, 20, 1])
    for probabilities in (log_uniform(counts), popularity(counts, 1.0), popularity(counts, 0.0)):
        assert probabilities.sum() == pytest.approx(1)
        drawn = NegativeSampler(probabilities).draw(np.random.default_rng(0), 100_000)
        shares = np.bincount(drawn.numpy(), minlength=5) / 100_000
        np.testing.assert_allclose(shares[1:], probabilities, atol=0.01)
        assert shares[0] == 0
    assert log_uniform(counts).argsort().tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("cosine", [True, False])
def test_windows_without_clicks_have_sound_gradients(cosine: bool) -> None:
    """Empty and single-click windows in a batch do not poison training."""
    model = Mind(10, width=6, interests=3, cosine=cosine, hidden=4)
    rows = torch.tensor([[0, 0, 0], [4, 0, 0], [1, 2, 3]])
    vectors = torch.nn.functional.embedding(rows, model.item_table())
    interests, _ = model.encode(vectors, rows > 0, torch.randn(3, 3, 3))
    assert not interests[0].any()
    interests.pow(3).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not model.table.grad[0].any()
