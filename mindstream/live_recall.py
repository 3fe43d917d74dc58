"""Recall of a release on the newest clicks, each predicted from what was known just before it.

As `mindstream.recall`, but of clicks that go on, of users drawn, and without the clicks that say
nothing of a release: those that it was trained on, and those of users of whom nothing was known.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from encoder.window import Window, from_wire, to_wire
from mindstream.drift import encode
from mindstream.live_release import LiveRelease

CUTS: Final = (20, 50)
_MOST: Final = max(CUTS)
_POPULAR_MS: Final = 7 * 86_400_000
_AT_ONCE: Final = 512
_MISSED: Final = _MOST  # as a rank


@dataclass(frozen=True, slots=True)
class SeenClick:
    """A click, and what was known just before it.

    Attributes:
        before: its user's clicks of earlier moments, a window in its wire form.
        popular_rank: of its item among the most popular ones, from 0; `_MISSED` if beyond.
    """

    before: bytes
    timestamp_ms: int
    item_id: str
    popular_rank: int


@dataclass(frozen=True, slots=True)
class LiveRecall:
    """What was found of the newest clicks.

    Attributes:
        clicks: that recall is of: from after the release's training, of users with clicks before.
        recall: share of them among so many items nearest to the user's interests, by number.
        popularity: share of them among so many of the most popular items, by number.
        observed: clicks from after the release's training.
        unknown: share of those on items that the release did not know when they were judged,
            neither from its training nor from the items topic: it could only miss them.
    """

    clicks: int
    recall: dict[int, float]
    popularity: dict[int, float]
    observed: int
    unknown: float


class NewestClicks:
    """So many clicks, the newest, and the rank that a release gave to each."""

    def __init__(self, most: int) -> None:
        """Begin with none."""
        self._most = most
        self._clicks: deque[SeenClick] = deque(maxlen=most)
        self._scored: deque[tuple[int, bool]] = deque()  # of the oldest: rank, whether it is known
        self._release: str | None = None

    def add(self, clicks: Iterable[SeenClick]) -> None:
        """Note clicks; the oldest give way."""
        for click in clicks:
            if self._scored and len(self._clicks) == self._most:
                self._scored.popleft()  # of the click that gives way
            self._clicks.append(click)

    def judge(self, live: LiveRelease) -> LiveRecall:
        """What a release finds of them; another one than before judges all of them anew.

        A click is judged once, among the items that are retrieved then.
        """
        if self._release != live.name:
            self._scored.clear()
            self._release = live.name
        fresh = list(self._clicks)[len(self._scored) :]
        for start in range(0, len(fresh), _AT_ONCE):
            self._scored.extend(_ranks(live, fresh[start : start + _AT_ONCE]))
        until_ms = live.encoder.release.manifest.training.until_ms
        pairs = zip(self._clicks, self._scored, strict=True)
        observed = [(click, *scored) for click, scored in pairs if click.timestamp_ms > until_ms]
        counted = [
            (rank, click.popular_rank)
            for click, rank, _ in observed
            if from_wire(click.before).clicks
        ]
        ranks = np.array(counted, np.int64).reshape(-1, 2)
        return LiveRecall(
            clicks=len(ranks),
            recall={n: _share(ranks[:, 0] < n) for n in CUTS},
            popularity={n: _share(ranks[:, 1] < n) for n in CUTS},
            observed=len(observed),
            unknown=_share(np.array([not known for _, _, known in observed], np.bool_)),
        )


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ranks(live: LiveRelease, clicks: Sequence[SeenClick]) -> Iterator[tuple[int, bool]]:
    """Each item's place among those nearest to the interests before it, and whether it is known."""
    batch = encode(live.encoder, [from_wire(click.before) for click in clicks])
    found = live.nearest(batch, _MOST)
    rows = live.encoder.rows(click.item_id for click in clicks)
    for row, nearest in zip(rows.tolist(), found, strict=True):
        places = np.flatnonzero(nearest == row - 1)  # where nothing is found, all are -1
        found_at = int(places[0]) if row and len(places) else _MISSED
        yield found_at, row != 0


def new_clicks(
    before: bytes | None, after: bytes | None, popular: dict[str, int], *, length: int
) -> Iterator[SeenClick]:
    """The clicks that one window has and the window before it had not, oldest first.

    Args:
        before: a user's window in its wire form; None if there was none.
        after: the next one; None where it was removed.
        popular: the rank of popular items, from 0.
        length: L, the most clicks a window holds.
    """
    if after is None:
        return
    now = from_wire(after)
    known = set(from_wire(before).clicks) if before is not None else set()
    everything = sorted(c for c in {*known, *now.clicks} if c[0] > now.erased_at_ms)
    for timestamp_ms, item_id in now.clicks:
        if (timestamp_ms, item_id) not in known:
            earlier = tuple(click for click in everything if click[0] < timestamp_ms)[-length:]
            rank = popular.get(item_id, _MISSED)
            yield SeenClick(to_wire(Window(earlier)), timestamp_ms, item_id, rank)


def popular_items(windows: Iterable[Window]) -> dict[str, int]:
    """The items most clicked in the week before the newest click, and the rank of each."""
    clicks = [click for window in windows for click in window.clicks]
    since_ms = max((at for at, _ in clicks), default=0) - _POPULAR_MS
    counts = Counter(item for at, item in clicks if at > since_ms)
    return {item: rank for rank, (item, _) in enumerate(counts.most_common(_MOST))}
