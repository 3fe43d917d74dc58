"""A user's interests as rows of the store, computed from windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoder.mind_encoder import MindEncoder
from encoder.mix import recent_text
from encoder.release import Release


def interest_key(user_id: str, slot: int) -> str:
    """The primary key of an interest. Unambiguous: the slot is what follows the last `#`."""
    return f"{user_id}#{slot}"


@dataclass(frozen=True, slots=True)
class InterestRows:
    """Rows of `interests_<release>` as columns, n rows in all.

    Attributes:
        user_ids: n user ids.
        slots: int64 (n,), the interest's number within its user, from 0.
        weights: float32 (n,), share of the window that went to the interest.
        exemplars: n item ids, the item that speaks most for each interest.
        updated_at: int64 (n,), event time in ms of the user's newest click.
        vectors: float32 (n, D), of length 1 up to their marks.
        recent: n texts: in slot 0 the window's newest clicks as JSON, newest first, with null for
            items that the release does not know; empty in others. None for releases without a mix.
    """

    user_ids: list[str]
    slots: NDArray[np.int64]
    weights: NDArray[np.float32]
    exemplars: list[str]
    updated_at: NDArray[np.int64]
    vectors: NDArray[np.float32]
    recent: list[str] | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def keys(self) -> list[str]:
        """The primary keys, in row order."""
        return list(map(interest_key, self.user_ids, self.slots.tolist()))


@dataclass(frozen=True, slots=True)
class ClickColumns:
    """The windows of B users, window after window, as columns.

    Attributes:
        timestamps_ms: int64 (n,), oldest first within each window.
        rows: int32 (n,), rows of the release's item table; 0 for items it does not know.
        counts: int64 (B,), clicks of each window.
    """

    timestamps_ms: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.int64]


def encoder_inputs(
    clicks: ClickColumns, *, window_length: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Windows as the encoder reads them: the one place where this is decided.

    Args:
        clicks: windows of B users.
        window_length: the release's L; only the newest L clicks of a longer window count.

    Returns:
        Rows, int32 (B, L'), oldest first and padded at the end with 0, and ages, float32 (B, L'),
        seconds before the window's newest click. L' is the longest of the windows, at most L.
    """
    counts = clicks.counts
    kept = np.minimum(counts, window_length)
    ends = np.cumsum(counts)
    known, at = clicks.rows, clicks.timestamps_ms
    seconds = (at[np.repeat(ends - 1, counts)] - at) / 1000.0
    if np.any(kept < counts):
        inside = np.arange(len(known)) >= np.repeat(ends - kept, counts)
        known, seconds = known[inside], seconds[inside]
    places = np.arange(int(kept.max(initial=0))) < kept[:, None]  # (B, L')
    rows = np.zeros(places.shape, np.int32)
    ages = np.zeros(places.shape, np.float32)
    rows[places] = known
    ages[places] = seconds
    return rows, ages


def interest_counts(release: Release, clicks: ClickColumns) -> NDArray[np.int64]:
    """How many interests each window has, without encoding it: int64 (B,).

    max(1, min(K, log2 n)) for a window with n known clicks (MIND, section 3.3.2), and 0
    where no click is on a known item.
    """
    ends = np.cumsum(clicks.counts)
    kept = np.minimum(clicks.counts, release.manifest.window_length)
    so_far = np.concatenate([[0], np.cumsum(clicks.rows != 0)])
    known = so_far[ends] - so_far[ends - kept]  # (B,)
    # frexp is exact where log2 of a float might round: known = m * 2^e with m in [0.5, 1).
    floor_log2 = np.frexp(known)[1] - 1
    counts = np.clip(floor_log2, 1, release.manifest.interests)
    return np.where(known > 0, counts, 0).astype(np.int64)


def compute_interests(
    encoder: MindEncoder, user_ids: Sequence[str], clicks: ClickColumns
) -> tuple[InterestRows, NDArray[np.int64]]:
    """Encode windows into rows of the store.

    Args:
        encoder: of the release that the rows are for.
        user_ids: B users.
        clicks: their windows, in the same order.

    Returns:
        The rows, user after user and slot after slot, and int64 (B,), how many rows each user has:
        0 where no click of the window is on a known item.
    """
    release = encoder.release
    rows, ages = encoder_inputs(clicks, window_length=release.manifest.window_length)
    batch = encoder.encode(rows, ages)
    mix = release.manifest.mix
    slots = np.arange(release.manifest.interests)
    used = slots < batch.counts[:, None]  # (B, K)
    owner, slot = np.nonzero(used)
    exemplar_rows = rows[owner, batch.exemplars[owner, slot]]
    # reduceat would need care with empty windows; the newest click is simply the last of its run.
    newest = clicks.timestamps_ms[np.cumsum(clicks.counts)[owner] - 1]
    return (
        InterestRows(
            user_ids=[user_ids[user] for user in owner.tolist()],
            slots=slot.astype(np.int64),
            weights=batch.weights[owner, slot],
            exemplars=encoder.item_ids(exemplar_rows.tolist()),
            updated_at=newest.astype(np.int64),
            vectors=batch.vectors[owner, slot],
            recent=None if mix is None else _recent(encoder, clicks, used, mix.clicks),
        ),
        batch.counts,
    )


def _recent(
    encoder: MindEncoder, clicks: ClickColumns, used: NDArray[np.bool_], most: int
) -> list[str]:
    """What `InterestRows.recent` says of windows.

    Args:
        encoder: knows the items in the rows.
        clicks: the windows.
        used: bool (B, K), which slots have a row.
        most: clicks of a window.
    """
    ends = np.cumsum(clicks.counts)
    begins = np.maximum(ends - clicks.counts, ends - most)
    own = encoder.release.quoted_ids
    quoted = own.__getitem__ if int(clicks.rows.max(initial=0)) < len(own) else encoder.quoted
    texts = []
    for begin, end, slots in zip(
        begins.tolist(), ends.tolist(), used.sum(axis=1).tolist(), strict=True
    ):
        if slots:
            newest = clicks.rows[begin:end][::-1].tolist()
            texts.append(recent_text([quoted(row) for row in newest]))
            texts += [""] * (slots - 1)
    return texts
