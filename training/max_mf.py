"""Several vectors per user by matrix factorisation, what learned models are measured against.

B examples or users, L window length, K interests, D vector width, S negatives, N items.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from training.fit import torch_threads
from training.loss import NegativeSampler, popularity
from training.model import NEVER
from training.preset import TrainingConfig
from training.sequences import Sequences

STEPS: int = 60
"""Of gradient, to find the vectors of a user who was not trained on."""
_RATE = 0.05
_USERS_AT_ONCE = 512


class MaxMf:
    """Scores an item by the best of a user's vectors: max over k of ⟨u_k, v⟩.

    Weston et al., "Nonlinear latent factorization by embedding multiple user interests", RecSys
    2013. As there, all vectors are of a bounded length, and a user has them by itself: nothing says
    what a new user's are. So those are found as they would have been in training, by gradient on
    the clicks of the window while the items stay as they are. The loss is the sampled softmax that
    the other models have, in place of WARP, which draws until a negative scores too high.
    """

    def __init__(self, sequences: Sequences, items: int, config: TrainingConfig) -> None:
        """Train; the same seed and threads give the same bits.

        Args:
            sequences: rows 1..N.
            items: N.
            config: width, interests, temperature, negatives (drawn evenly), epochs, examples, batch
                size, learning rate, seed and threads are read.
        """
        self._config = config
        self._sampler = NegativeSampler(popularity(np.ones(items, np.int64), 0.0))
        generator = torch.Generator().manual_seed(config.seed)
        rng = np.random.default_rng([config.seed, 4])
        known = np.flatnonzero(sequences.rows > 0)
        user_of = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts))
        self._items = _drawn((items + 1, config.width), generator).requires_grad_()
        shape = (len(sequences), config.interests * config.width)
        users = _drawn(shape, generator).requires_grad_()
        total = int(min(len(known) * config.epochs, config.examples))
        steps = math.ceil(total / config.batch_size)
        of_items = torch.optim.Adam([self._items], lr=config.learning_rate, fused=True)
        of_users = torch.optim.SparseAdam([users], lr=config.learning_rate)
        with torch_threads(config.threads):
            for step in range(steps):
                at = known[rng.integers(len(known), size=config.batch_size)]
                rows = torch.from_numpy(user_of[at])
                own = functional.embedding(rows, users, sparse=True)  # (B, K·D)
                clicks = torch.from_numpy(sequences.rows[at].astype(np.int64)).unsqueeze(1)
                loss = self._loss(own.view(len(rows), config.interests, -1), clicks, rng)
                rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                for optimiser in (of_items, of_users):
                    optimiser.param_groups[0]["lr"] = rate
                    optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                of_items.step()
                of_users.step()  # type: ignore[no-untyped-call]
        self._items.requires_grad_(False)
        self._items[0] = 0.0

    @property
    def table(self) -> npt.NDArray[np.float32]:
        """Item vectors: float32 (N+1, D), row 0 zeros."""
        return bounded(self._items).numpy()

    def encode(
        self, windows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Vectors of users who were not trained on.

        Args:
            windows: int64 (U, L), rows; 0 where there is none.

        Returns:
            float32 (U, K, D), and how many of the K are used, int64 (U,): all, or none without a
            click.
        """
        config = self._config
        generator = torch.Generator().manual_seed(config.seed)
        rng = np.random.default_rng([config.seed, 5])
        parts = [np.zeros((0, config.interests, config.width), np.float32)]
        with torch_threads(config.threads):
            for start in range(0, len(windows), _USERS_AT_ONCE):
                clicks = torch.from_numpy(windows[start : start + _USERS_AT_ONCE])
                shape = (len(clicks), config.interests, config.width)
                users = _drawn(shape, generator).requires_grad_()
                optimiser = torch.optim.Adam([users], lr=_RATE, fused=True)
                for _ in range(STEPS):
                    optimiser.zero_grad()
                    self._loss(users, clicks, rng).backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                parts.append(bounded(users.detach()).numpy())
        return np.concatenate(parts), np.where(windows.any(axis=1), config.interests, 0)

    def _loss(self, users: Tensor, clicks: Tensor, rng: np.random.Generator) -> Tensor:
        """Mean cross-entropy of each click against negatives; as in `training.loss`.

        Args:
            users: float32 (B, K, D).
            clicks: int64 (B, L), rows; 0 where there is none.
            rng: of the negatives.
        """
        negatives = self._sampler.draw(rng, self._config.negatives)  # (S,)
        seen = bounded(users) / self._config.temperature
        wanted = bounded(functional.embedding(clicks, self._items))  # (B, L, D)
        positive = (wanted @ seen.transpose(1, 2)).amax(dim=2)  # (B, L)
        others = bounded(functional.embedding(negatives, self._items))  # (S, D)
        scores = (seen @ others.T).amax(dim=1)  # (B, S)
        scores = scores - (self._sampler.log_probability[negatives] + math.log(len(negatives)))
        scores = scores.masked_fill((negatives == clicks.unsqueeze(2)).any(dim=1), NEVER)
        losses = functional.softplus(scores.logsumexp(dim=1, keepdim=True) - positive)  # (B, L)
        real = (clicks > 0).to(losses.dtype)
        mean: Tensor = (losses * real).sum() / real.sum().clamp(min=1)
        return mean


def bounded(vectors: Tensor) -> Tensor:
    """Shorten vectors that are longer than 1 to that length."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.clamp(min=1)


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * (0.1 / math.sqrt(shape[-1]))
