"""What interests, own items and recent popularity count, fitted: see `encoder.mix` for the rule.

Nobody can say once for all what the parameters are: a gift shop's customers order again what they
had, while nobody reviews the same thing twice. So they are fitted on clicks that the model has not
seen.

M moments to recommend at, C clicks to find, L window length, K interests, D vector width, N items.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encoder.mix import Mix

PARTS: Final = ("interests", "own", "popular")
_OWN: Final = ("own", "again", "later", "alike")
_RIDGE: Final = 1e-5
_ROUNDS: Final = 50
_SCORES_AT_ONCE: Final = 8_000_000  # float32, of which a few copies are held

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What is known when recommending.

    Attributes:
        table: float32 (N+1, D), item vectors; zeros in row 0 and for items without one.
        vectors: float32 (M, K, D), interests.
        counts: int64 (M,), how many of the K are used.
        windows: int64 (M, L), rows, oldest click first, padded at the end with 0: the newest
            clicks, of which there may be more than interests are computed from.
        popularity: float32 (P, N+1), log(1 + recent clicks) at P times; 0 in column 0.
        at: int64 (M,), which of the P times is the moment's.
    """

    table: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    counts: Rows
    windows: Rows
    popularity: npt.NDArray[np.float32]
    at: Rows

    def __len__(self) -> int:
        return len(self.windows)

    def some(self, moments: slice | Rows) -> "Known":
        """What is known at some of the moments."""
        names = ("vectors", "counts", "windows", "at")
        return dataclasses.replace(self, **{name: getattr(self, name)[moments] for name in names})

    def parts(self) -> Iterator[tuple[slice, "Known"]]:
        """All of it, some moments at a time."""
        step = max(1, _SCORES_AT_ONCE // (len(self.table) * self.vectors.shape[1]))
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            yield part, self.some(part)

    @cached_property
    def own(self) -> "OwnItems":
        """The items of the windows."""
        return OwnItems.of(self.windows)

    def similarities(self) -> npt.NDArray[np.float32]:
        """Best inner product of each item with any interest: float32 (M, N+1).

        0 throughout without interests, and for items without a vector.
        """
        moments, slots, width = self.vectors.shape
        scores = (self.vectors.reshape(-1, width) @ self.table.T).reshape(moments, slots, -1)
        scores[np.arange(slots) >= self.counts[:, None]] = -np.inf
        best: npt.NDArray[np.float32] = scores.max(axis=1)
        best[self.counts == 0] = 0
        return best


@dataclass(frozen=True)
class OwnItems:
    """The distinct items of M windows, O in all.

    Attributes:
        moments: int64 (O,), whose window.
        rows: int64 (O,), which item.
        features: float32 (O, 3): 1, the log of its clicks, log(1 + clicks after its newest).
    """

    moments: Rows
    rows: Rows
    features: npt.NDArray[np.float32]

    @classmethod
    def of(cls, windows: Rows) -> "OwnItems":
        """Find and count them."""
        owner, place = np.nonzero(windows)
        lengths = windows.shape[1] - (windows[:, ::-1] != 0).argmax(axis=1)  # (M,)
        after = lengths[owner] - 1 - place
        order = np.lexsort((after, windows[owner, place], owner))
        owner, after = owner[order], after[order]
        rows = windows[owner, place[order]]
        first = (np.diff(owner, prepend=-1) != 0) | (np.diff(rows, prepend=-1) != 0)
        begins = np.flatnonzero(first)
        times = np.diff(np.append(begins, len(rows)))
        features = np.stack(
            [np.ones(len(begins)), np.log(times), np.log1p(after[begins])], axis=1
        ).astype(np.float32)
        return cls(owner[begins], rows[begins], features)


@dataclass(frozen=True)
class Clicks:
    """What was clicked at the moments.

    Attributes:
        moments: int64 (C,).
        rows: int64 (C,); 0 or less for items that cannot be found.
    """

    moments: Rows
    rows: Rows

    @classmethod
    def of(cls, targets: list[frozenset[int]]) -> "Clicks":
        """Sets of rows, one for each moment."""
        sizes = [len(rows) for rows in targets]
        rows = [row for one in targets for row in sorted(one)]
        return cls(np.repeat(np.arange(len(targets)), sizes), np.array(rows, np.int64))


def fitted(known: Known, clicks: Clicks, parts: tuple[str, ...] = PARTS) -> Mix:
    """The parameters under which the clicks are likeliest, by a softmax over all items.

    That is convex, so there is one best answer whatever the start. Every click counts alike.

    Args:
        known: before the clicks.
        clicks: none of which the model was trained on.
        parts: some of `PARTS`; what the others count is 0.
    """
    names: list[str] = [name for name in ("interests", "popular") if name in parts]
    if "own" in parts:
        names += [name for name in _OWN if name != "alike" or "interests" in parts]
    findable = clicks.rows > 0
    moments, rows = clicks.moments[findable], clicks.rows[findable]
    order = np.argsort(moments, kind="stable")
    moments, rows = moments[order], rows[order]
    weights = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=_ROUNDS, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    held = [
        (_Dense.of(some), *_between(moments, rows, part.start, part.start + len(some)))
        for part, some in known.parts()
    ]

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = (_RIDGE * weights.square()).sum()
        total.backward()  # type: ignore[no-untyped-call]
        for dense, inside, wanted in held:
            counts = dict(zip(names, weights.float(), strict=True))
            scores = dense.scores(counts)
            missed = torch.logsumexp(scores[:, 1:], 1)[inside] - scores[inside, wanted]
            part = missed.double().sum() / len(rows)
            part.backward()  # type: ignore[no-untyped-call]
            total = total.detach() + part.detach()
        return total

    if len(rows):
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Mix(**dict(zip(names, weights.tolist(), strict=True)))


def found(known: Known, mix: Mix, top: int) -> Rows:
    """Each moment's best items: int64 (M, min(top, N)) rows, best first."""
    best = [np.zeros((0, min(top, len(known.table) - 1)), np.int64)]
    counts = {name: torch.tensor(value) for name, value in mix.weights().items()}
    for _, some in known.parts():
        scores = _Dense.of(some).scores(counts)[:, 1:]
        best.append(scores.topk(best[0].shape[1], dim=1).indices.numpy() + 1)
    return np.concatenate(best)


@dataclass(frozen=True)
class _Dense:
    """What of the score does not depend on the parameters, of some moments."""

    similarities: Tensor
    popularity: Tensor
    at: Tensor
    own: tuple[Tensor, Tensor]
    features: Tensor

    @classmethod
    def of(cls, known: Known) -> "_Dense":
        own = known.own
        similarities = known.similarities()
        alike = similarities[own.moments, own.rows]
        return cls(
            torch.from_numpy(similarities),
            torch.from_numpy(known.popularity),
            torch.from_numpy(known.at),
            (torch.from_numpy(own.moments), torch.from_numpy(own.rows)),
            torch.from_numpy(np.concatenate([own.features, alike[:, None]], axis=1)),
        )

    def scores(self, counts: Mapping[str, Tensor]) -> Tensor:
        """float32 (M, N+1) under those of the parameters that count; column 0 is no item."""
        total = torch.zeros(self.similarities.shape)
        if "interests" in counts:
            total = total + counts["interests"] * self.similarities
        if "popular" in counts:
            total = total + (counts["popular"] * self.popularity)[self.at]
        own = [name for name in _OWN if name in counts]
        if own:
            columns = self.features[:, [_OWN.index(name) for name in own]]
            values = columns @ torch.stack([counts[name] for name in own])
            total = total.index_put(self.own, values, accumulate=True)
        return total


def _between(moments: Rows, rows: Rows, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Those of the clicks, sorted by moment, that are of some moments, which count from 0."""
    first, last = np.searchsorted(moments, [begin, end])
    return torch.from_numpy(moments[first:last] - begin), torch.from_numpy(rows[first:last])
