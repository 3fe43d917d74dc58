"""How far a release departs from the one before it, for the same windows of the same users.

Two releases need not share a space, so nothing is compared by vector that only one of them has
made; a user's strongest interest is compared by the items it leads to.

U users, K interests, D vector width, N items, S items that both releases know.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from encoder.errors import Misconfigured
from encoder.interests import encoder_inputs
from encoder.mind_encoder import InterestBatch, MindEncoder
from encoder.nearest import nearest_rows
from encoder.release_store import read_beside
from encoder.window import Window
from mindstream.audit import columns_of
from mindstream.live_release import LiveRelease

DRIFT_FILE: Final = "drift.json"
N_NEAREST: Final = 20
LEAST_OVERLAP: Final = 0.2
N_COVERED: Final = 50
_FEW: Final = 10

Vectors = NDArray[np.float32]


class Drift(BaseModel):
    """What changed for users drawn at random when readers went over to a release.

    Attributes:
        release: that readers went over to.
        before: that they read until then.
        warm: whether `release` was trained from `before`.
        users: drawn, with interests in both.
        changed: share of them whose strongest interest leads elsewhere, see `strongest_changed`.
        shared_items: items that both retrieve.
        item_cosine: mean cosine between the vectors of the same item; around 0 without a warm
            start, since the spaces have nothing in common; None where their widths differ.
        interest_cosine: mean cosine between the interests of one user, in `release`, over users who
            have several; 1 where all are the same.
        coverage: share of the items that `release` retrieves that are among the nearest of anybody
            drawn.
    """

    model_config = ConfigDict(frozen=True)

    release: str
    before: str
    at: datetime
    warm: bool
    users: int
    changed: float
    shared_items: int
    item_cosine: float | None
    interest_cosine: float
    coverage: float

    def __str__(self) -> str:
        moved = "none, as widths differ" if self.item_cosine is None else f"{self.item_cosine:.3f}"
        return (
            f"from release {self.before} to {self.release} ({'warm' if self.warm else 'cold'}"
            f" start): {100 * self.changed:.1f} % of {self.users} users drawn have another"
            f" strongest interest; mean cosine of {self.shared_items} items"
            f" {moved}; of a user's interests {self.interest_cosine:.3f};"
            f" {100 * self.coverage:.1f} % of the items are among somebody's {N_COVERED} nearest"
        )


def measure_drift(before: LiveRelease, after: LiveRelease, windows: Sequence[Window]) -> Drift:
    """Compare two releases on users' windows.

    Args:
        before: the release that readers leave.
        after: the one that they go over to.
        windows: of users drawn at random.
    """
    old, new = encode(before.encoder, windows), encode(after.encoder, windows)
    item_ids = after.retrieved()
    places, others = before.positions(item_ids), after.positions(item_ids)
    known = places >= 0
    old_items, new_items = before.vectors(places[known]), after.vectors(others[known])
    changed = strongest_changed(old, new, old_items, new_items)
    manifest = after.encoder.release.manifest
    comparable = old_items.shape == new_items.shape
    learned = manifest.width - manifest.marks
    started_warm = manifest.parent == before.name and manifest.metrics.get("warm") == 1.0
    return Drift(
        release=after.name,
        before=before.name,
        at=datetime.now(UTC),
        warm=started_warm,
        users=len(changed),
        changed=round(_mean(changed), 4),
        shared_items=len(old_items),
        item_cosine=round(_mean(cosines(old_items[:, :learned], new_items[:, :learned])), 4)
        if comparable
        else None,
        interest_cosine=round(new.mean_cosine(), 4),
        coverage=round(after.coverage(new, N_COVERED), 4),
    )


def encode(encoder: MindEncoder, windows: Sequence[Window]) -> InterestBatch:
    """Interests of windows, which are the U users of the batch."""
    columns = columns_of(encoder, windows)
    rows, ages = encoder_inputs(columns, window_length=encoder.release.manifest.window_length)
    return encoder.encode(rows, ages)


def strongest_changed(
    before: InterestBatch,
    after: InterestBatch,
    before_items: Vectors,
    after_items: Vectors,
    *,
    n: int = N_NEAREST,
    least: float = LEAST_OVERLAP,
) -> NDArray[np.bool_]:
    """Whether each user's strongest interest leads elsewhere than it did.

    Each release's strongest interest (that of the largest weight) stands for the n items nearest to
    it, among those that both know. It has changed where fewer than a share `least` of the n are the
    same. Slots and vectors would not do: only after a warm start do they mean the same in both. Nor
    would the exemplar, one click of the window: of two alike either may come first. What the limit
    was chosen by: docs/decisions/0018.

    Args:
        before: interests of U users in one release.
        after: of the same windows in the other.
        before_items: float32 (S, D), vectors of the items that both know.
        after_items: the same items in the other release.
        n: items that an interest stands for; a tenth of all where they are few, so that chance
            alone hardly makes any the same.
        least: share of them that must be the same.

    Returns:
        Of the users who have interests in both.
    """
    both = (before.counts > 0) & (after.counts > 0)
    n = max(1, min(n, len(after_items) // _FEW))
    ones = np.ones(int(both.sum()), np.int64)
    one = nearest_rows(strongest(before)[both, None], ones, before_items, n)
    other = nearest_rows(strongest(after)[both, None], ones, after_items, n)
    joined = np.sort(np.concatenate([one, other], axis=1), axis=1)
    same = (joined[:, 1:] == joined[:, :-1]).sum(axis=1)
    return np.asarray(same < least * one.shape[1], np.bool_)


def strongest(batch: InterestBatch) -> Vectors:
    """Each user's interest of the largest weight, the first of several: float32 (U, D)."""
    slots = batch.weights.argmax(axis=1)
    found: Vectors = batch.vectors[np.arange(len(slots)), slots]
    return found


def cosines(vectors: Vectors, others: Vectors) -> Vectors:
    """Between each row and the same row of others, (S, D) both; rows of zeros are left out."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    some = lengths > 0
    found: Vectors = np.einsum("nd,nd->n", vectors[some], others[some]) / lengths[some]
    return found


def coverage(batch: InterestBatch, items: Vectors, *, n: int = N_COVERED) -> float:
    """Share of items, float32 (N, D), that are among the n nearest of any user."""
    found = nearest_rows(batch.vectors, batch.counts, items, n)
    return len(np.unique(found[found >= 0])) / max(1, len(items))


def stored_drift(url: str) -> Drift | None:
    """What was measured when readers went over to the release that lies there; None if nothing was.

    Raises:
        Misconfigured: the file is not what a publisher of this version writes.
        ReleaseUnavailableError: the storage does not answer.
    """
    text = read_beside(url, DRIFT_FILE)
    try:
        return None if text is None else Drift.model_validate_json(text)
    except ValidationError as exc:
        raise Misconfigured(
            f"{url}/{DRIFT_FILE} is of another version: {exc.errors(include_url=False)[0]['msg']};"
            " `mindstream release drift --anew` measures it again"
        ) from exc


def _mean(values: NDArray[np.bool_] | NDArray[np.float32]) -> float:
    return float(values.mean()) if len(values) else 0.0
