"""How well held-out clicks are found: exact inner-product search, best over interests.

U users, L window length, K interests, D vector width, N items.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder.nearest import nearest_rows
from training.click_log import ClickLog
from training.sequences import Sequences

CUTS = (20, 50)


@dataclass(frozen=True)
class HeldOut:
    """Users with clicks both before and after a moment.

    Attributes:
        windows: int64 (U, L), rows before it, oldest first, padded at the end with 0.
        targets: U sets of rows clicked after it; items unknown to the table are negative numbers,
            so that they count and are never found.
        profiles: int64 (U, P), the users' codes as in `Sequences`; None where there are none.
    """

    windows: npt.NDArray[np.int64]
    targets: list[frozenset[int]]
    profiles: npt.NDArray[np.int64] | None = None

    @classmethod
    def split(
        cls,
        past: ClickLog,
        future: ClickLog,
        item_ids: list[str],
        window_length: int,
        profiles: npt.NDArray[np.int64] | None = None,
    ) -> "HeldOut":
        """Pair each user's last window in `past` with the distinct items of `future`.

        Args:
            past: clicks before the moment.
            future: those after it.
            item_ids: the ids that rows 1..N of the item table stand for.
            window_length: the longest a window may be.
            profiles: int64 (users of `past`, P), in the order of its `user_ids`.
        """
        rows = {item: row for row, item in enumerate(item_ids, start=1)}
        future_rows = [rows.get(item, -1 - code) for code, item in enumerate(future.item_ids)]
        clicked: dict[str, set[int]] = {}
        for user, item in zip(future.users, future.items, strict=True):
            clicked.setdefault(future.user_ids[user], set()).add(future_rows[item])
        windows = Sequences.from_log(past, item_ids).last_windows(window_length)
        known = [
            (place, clicked[user])
            for place, user in enumerate(past.user_ids)
            if user in clicked and windows[place].any()
        ]
        places = [place for place, _ in known]
        return cls(
            windows[places],
            [frozenset(items) for _, items in known],
            None if profiles is None else profiles[places],
        )

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, most: int) -> "HeldOut":
        """At most so many of the users, evenly spaced."""
        places = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))
        return HeldOut(self.windows[places], [self.targets[place] for place in places])


def search(
    interests: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
    table: npt.NDArray[np.float32],
    top: int,
) -> npt.NDArray[np.int64]:
    """Each user's items by their best inner product with any interest, best first.

    Args:
        interests: float32 (U, K, D).
        counts: int64 (U,), how many of the K are used.
        table: float32 (N+1, D); row 0 is never found.
        top: how many items.

    Returns:
        int64 (U, min(top, N)) rows; -1 throughout for users without an interest.
    """
    places = nearest_rows(interests, counts, table[1:], top)
    return np.where(places < 0, places, places + 1)


def measures(found: npt.NDArray[np.int64], targets: list[frozenset[int]]) -> dict[str, float]:
    """Recall, hit rate and NDCG at each cut, averaged over users.

    NDCG's ideal gain is over min(N, number of targets).

    Args:
        found: int64 (U, at least the largest cut or all items), rows, best first.
        targets: U non-empty sets of rows.
    """
    totals: dict[str, float] = {}
    for cut in CUTS:
        gains = 1 / np.log2(np.arange(2, cut + 2))
        recall = hit = ndcg = 0.0
        for rows, wanted in zip(found[:, :cut].tolist(), targets, strict=True):
            hits = [place for place, row in enumerate(rows) if row in wanted]
            recall += len(hits) / len(wanted)
            hit += bool(hits)
            ndcg += gains[hits].sum() / gains[: min(cut, len(wanted))].sum()
        users = max(1, len(targets))
        totals |= {
            f"recall_at_{cut}": float(recall / users),
            f"hit_rate_at_{cut}": float(hit / users),
            f"ndcg_at_{cut}": float(ndcg / users),
        }
    return totals


Encode = Callable[[npt.NDArray[np.int64]], tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
"""Windows int64 (U, L) to interests float32 (U, K, D) and counts int64 (U,)."""


def evaluate(encode: Encode, table: npt.NDArray[np.float32], held_out: HeldOut) -> dict[str, float]:
    """Measures of an encoder with its item table, on held-out clicks."""
    interests, counts = encode(held_out.windows)
    return measures(search(interests, counts, table, max(CUTS)), held_out.targets)


def evaluate_popularity(clicks: npt.NDArray[np.int64], held_out: HeldOut) -> dict[str, float]:
    """Measures of recommending the same most clicked items to everyone.

    Args:
        clicks: int64 (N,), clicks of rows 1..N before the moment of the split.
        held_out: what to find.
    """
    top = np.argsort(-clicks, kind="stable")[: max(CUTS)] + 1
    return measures(np.tile(top, (len(held_out), 1)), held_out.targets)
