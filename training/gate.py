"""Whether a release may go into use: no worse than what is there, on the newest clicks held out.

Every recommender is measured as it would be served, on the same users, and compared by a paired
bootstrap over them (Koehn, "Statistical significance tests for machine translation evaluation",
EMNLP 2004): it takes more than chance and more than the margin to refuse.

U users, L window length, K interests, D vector width, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from training.click_log import ClickLog
from training.evaluation import search
from training.item_knn import ItemKnn
from training.sequences import Sequences

CUT: Final = 20
MOST_USERS: Final = 5_000
ENOUGH_USERS: Final = 100
_RESAMPLES: Final = 2_000
_COLLAPSED: Final = 0.99


class Comparison(BaseModel):
    """The candidate against one other, in Recall@20 averaged over users.

    Attributes:
        other: a release in use, "popularity" or "item-knn".
        recall: of the other.
        difference: the candidate's recall less the other's.
        low: of the difference, the 2.5th percentile of the bootstrap.
        high: the 97.5th.
        behind: whether the candidate is behind by more than the margin and more than chance.
    """

    model_config = ConfigDict(frozen=True)

    other: str
    recall: float
    difference: float
    low: float
    high: float
    behind: bool

    def __str__(self) -> str:
        return (
            f"{self.other} {100 * self.recall:.1f} %, difference {100 * self.difference:+.1f}"
            f" (95 % within {100 * self.low:+.1f} and {100 * self.high:+.1f})"
        )


class Report(BaseModel):
    """What the gate found.

    Attributes:
        release: the candidate.
        users: who were compared; the newest held-out clicks are theirs.
        recall: of the candidate, Recall@20 averaged over users.
        margin: that it may be behind by.
        comparisons: one for each other recommender.
        mean_cosine: between a user's interests, averaged over users who have several.
        reasons: why it is refused; empty if it passed.
        forced: whether it went into use all the same.
    """

    model_config = ConfigDict(frozen=True)

    release: str
    users: int
    recall: float
    margin: float
    comparisons: list[Comparison]
    mean_cosine: float
    reasons: list[str]
    forced: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    def __str__(self) -> str:
        parts = [f"Recall@{CUT} of {self.users} users {100 * self.recall:.1f} %"]
        if self.users < ENOUGH_USERS:
            parts.append(f"fewer than {ENOUGH_USERS} users, which says little")
        return "; ".join([*parts, *map(str, self.comparisons)])


@dataclass(frozen=True)
class _Split:
    """Users with clicks before and after a moment, by position in `past.user_ids`."""

    past: ClickLog
    users: npt.NDArray[np.int64]
    targets: list[frozenset[str]]


def judge(
    candidate: Release,
    clicks: ClickLog,
    *,
    margin: float,
    in_use: Release | None = None,
    previous: Release | None = None,
    seed: int = 0,
) -> Report:
    """Compare a release with the one in use, with recent popularity and with item-kNN.

    What is to be found are clicks that none of the releases was trained on.

    Args:
        candidate: says until when it was trained.
        clicks: the log, or some users of it.
        margin: of Recall@20, absolute; being behind by less is no reason to refuse.
        in_use: None if there is none.
        previous: what the candidate started from; None if from nothing.
        seed: of the users drawn where there are many, and of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    until_ms = candidate.manifest.training.until_ms
    past = clicks.between(until_ms=until_ms + 1)
    for known in (in_use, previous):
        if known is not None:
            until_ms = max(until_ms, known.manifest.training.until_ms)
    future = clicks.between(since_ms=until_ms + 1)
    split = _users(past, future, rng)
    own, mean_cosine = _recalls(candidate, split)
    others = {"popularity": _popularity(split), "item-knn": _item_knn(split, candidate.item_ids)}
    if in_use is not None:
        others = {f"release {in_use.name}": _recalls(in_use, split)[0], **others}
    comparisons = [_compare(name, own, other, margin, rng) for name, other in others.items()]
    reasons = [
        f"it is behind {one.other} by {-100 * one.difference:.1f} points of Recall@{CUT}, more than"
        f" the margin of {100 * margin:.1f} and than chance"
        for one in comparisons
        if one.behind
    ]
    if in_use is not None and not len(split.users):
        reasons.append("there are no newer clicks to compare it by with the release in use")
    if not np.isfinite(candidate.items).all():
        reasons.append("item vectors are not finite")
    if mean_cosine > _COLLAPSED:
        reasons.append(
            f"a user's interests have collapsed into one: their mean cosine is {mean_cosine:.3f},"
            f" above {_COLLAPSED}"
        )
    return Report(
        release=candidate.name,
        users=len(split.users),
        recall=_mean(own),
        margin=margin,
        comparisons=comparisons,
        mean_cosine=round(mean_cosine, 4),
        reasons=reasons,
    )


def _users(past: ClickLog, future: ClickLog, rng: np.random.Generator) -> _Split:
    """Those with clicks on both sides, at most so many, and the items they click later."""
    place_of = {user: place for place, user in enumerate(past.user_ids)}
    clicked: dict[int, set[str]] = {}
    for user, item in zip(future.users.tolist(), future.items.tolist(), strict=True):
        place = place_of.get(future.user_ids[user])
        if place is not None:
            clicked.setdefault(place, set()).add(future.item_ids[item])
    users = np.array(sorted(clicked), np.int64)
    if len(users) > MOST_USERS:
        users = np.sort(rng.choice(users, MOST_USERS, replace=False))
    return _Split(past, users, [frozenset(clicked[user]) for user in users.tolist()])


def _recalls(release: Release, split: _Split) -> tuple[npt.NDArray[np.float64], float]:
    """Each user's recall with a release as it is served, float64 (U,), and the mean cosine."""
    if not len(split.users):
        return np.zeros(0), 0.0
    windows = Sequences.from_log(split.past, list(release.item_ids)).last_windows(
        release.manifest.window_length
    )[split.users]
    batch = MindEncoder(release).encode(windows, np.zeros(windows.shape, np.float32))
    found = search(batch.vectors, batch.counts, np.asarray(release.items), CUT)
    return _recall(found, release.item_ids, split), batch.mean_cosine()


def _popularity(split: _Split) -> npt.NDArray[np.float64]:
    past = split.past
    counts = np.bincount(past.items, minlength=len(past.item_ids))
    top = np.argsort(-counts, kind="stable")[:CUT] + 1
    return _recall(np.tile(top, (len(split.users), 1)), past.item_ids, split)


def _item_knn(split: _Split, item_ids: Sequence[str]) -> npt.NDArray[np.float64]:
    sequences = Sequences.from_log(split.past, list(item_ids))
    windows = sequences.last_windows(50)[split.users]
    return _recall(ItemKnn(sequences, len(item_ids)).search(windows, CUT), item_ids, split)


def _recall(
    found: npt.NDArray[np.int64], item_ids: Sequence[str], split: _Split
) -> npt.NDArray[np.float64]:
    shares = [
        len(wanted.intersection(item_ids[row - 1] for row in rows if row > 0)) / len(wanted)
        for rows, wanted in zip(found.tolist(), split.targets, strict=True)
    ]
    return np.array(shares, np.float64)


def _compare(
    name: str,
    own: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    margin: float,
    rng: np.random.Generator,
) -> Comparison:
    differences = own - other
    low = high = 0.0
    if len(differences):
        # How often each user is drawn, rather than who.
        users = len(differences)
        shares = np.full(users, 1 / users)
        means = [
            float(rng.multinomial(users, shares) @ differences) / users for _ in range(_RESAMPLES)
        ]
        low, high = np.percentile(means, [2.5, 97.5]).tolist()
    difference = _mean(differences)
    return Comparison(
        other=name,
        recall=_mean(other),
        difference=difference,
        low=low,
        high=high,
        behind=difference < -margin and high < 0,
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
