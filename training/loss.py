"""Softmax over the item table, whole or sampled and corrected for how negatives are drawn.

B users, T targets, S negatives, N items, D vector width.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from training.model import NEVER


class NegativeSampler:
    """Draws items with given probabilities, with replacement.

    Args:
        probabilities: float64 (N,), of rows 1..N, adding up to 1.
    """

    def __init__(self, probabilities: npt.NDArray[np.float64]) -> None:
        self._edges = np.cumsum(probabilities)
        self._edges /= self._edges[-1]
        self.log_probability = torch.from_numpy(
            np.concatenate([[0.0], np.log(np.maximum(probabilities, 1e-12))]).astype(np.float32)
        )
        """float32 (N+1,), by row; row 0, which is never drawn, has 0."""

    def draw(self, rng: np.random.Generator, size: int) -> Tensor:
        """`size` rows, int64 (S,)."""
        found = np.searchsorted(self._edges, rng.random(size), side="right")
        return torch.from_numpy(np.minimum(found, len(self._edges) - 1) + 1)


def log_uniform(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Zipf's law over popularity ranks: log((r + 2) / (r + 1)) / log(N + 1), from r = 0.

    What sampled softmax draws from by default in TensorFlow, where MIND was written.

    Args:
        counts: int64 (N,), clicks of each item.
    """
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.log((ranks + 2) / (ranks + 1)) / math.log(len(counts) + 1)


def popularity(counts: npt.NDArray[np.int64], power: float) -> npt.NDArray[np.float64]:
    """Clicks to a power: 1 draws as items are clicked, 0 evenly."""
    weights = np.maximum(counts, 1).astype(np.float64) ** power
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def full_softmax(users: Tensor, targets: Tensor, table: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each target against all items.

    Args:
        users: float32 (B, T, D), the user as seen by each target.
        targets: int64 (B, T), rows; 0 for no target.
        table: float32 (N+1, D), item vectors.
        temperature: similarities are divided by it.

    Returns:
        float32 scalar.
    """
    real = targets > 0
    scores = (users[real] / temperature) @ table[1:].T  # (≤ B·T, N)
    total = functional.cross_entropy(scores, targets[real] - 1, reduction="sum")
    return total / real.sum().clamp(min=1)


def sampled_softmax(
    users: Tensor,
    targets: Tensor,
    table: Tensor,
    negatives: Tensor,
    log_probability: Tensor | None,
    temperature: float,
) -> Tensor:
    """Mean cross-entropy of each target against the same negatives.

    The paper's softmax sums over all items. Here that sum is the target's own term plus the
    other items' as estimated by importance sampling (Bengio and Senécal, 2008): each draw stands
    for the inverse of its expected number, and a draw of the target itself is left out. Over many
    draws the loss is that of the full softmax, whatever they are drawn by.

    Args:
        users: float32 (B, T, D), the user as seen by each target.
        targets: int64 (B, T), rows; 0 for no target.
        table: float32 (N+1, D), item vectors.
        negatives: int64 (S,), rows.
        log_probability: float32 (N+1,), log of the chance of a row in one draw; None to leave the
            draws uncorrected.
        temperature: similarities are divided by it.

    Returns:
        float32 scalar.
    """
    wanted = targets.flatten()  # (B·T,)
    seen = users.flatten(0, 1) / temperature  # (B·T, D)
    positive = (seen * functional.embedding(wanted, table)).sum(dim=1)  # (B·T,)
    offset = torch.zeros(len(negatives))  # (S,)
    if log_probability is not None:
        offset = -(log_probability[negatives] + math.log(len(negatives)))
    vectors = functional.embedding(negatives, table)  # (S, D)
    negative = log_sum_exp(seen, vectors, offset, negatives == wanted.unsqueeze(1))  # (B·T,)
    # Cross-entropy of the positive among itself and the negatives, without joining the two.
    losses = functional.softplus(negative - positive)
    real = (wanted > 0).to(losses.dtype)
    return (losses * real).sum() / real.sum().clamp(min=1)


def log_sum_exp(users: Tensor, items: Tensor, offset: Tensor, left_out: Tensor) -> Tensor:
    """Logarithm of the sum of the exponentials of each user's scores of items.

    Equal to what torch computes step by step, in less time: the scores are the largest thing
    in a training step, and here they are held once and gone through in place.

    Args:
        users: float (B, D).
        items: float (S, D).
        offset: float (S,), added to each user's inner products; gets no gradient.
        left_out: bool (B, S), scores that do not count.

    Returns:
        float (B,).
    """
    found: Tensor = _LogSumExp.apply(users, items, offset, left_out)
    return found


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, offset: Tensor, left_out: Tensor) -> Tensor:
        scores = torch.addmm(offset, users, items.T).masked_fill_(left_out, NEVER)  # (B, S)
        highest = scores.amax(dim=1, keepdim=True)
        scores.sub_(highest).exp_()
        total = scores.sum(dim=1)
        ctx.save_for_backward(users, items, scores, total)
        return highest.squeeze(1) + total.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users, items, exponentials, total = ctx.saved_tensors
        share = (grads[0] / total).unsqueeze(1)
        return (exponentials @ items) * share, exponentials.T @ (users * share), None, None
