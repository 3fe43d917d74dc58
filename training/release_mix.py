"""The mix that a release is published with: fitted on its held-out clicks.

N items.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from encoder.mix import Mix
from training.click_log import ClickLog
from training.mixing import fitted
from training.replay import POPULAR_DAYS, Learned, Replay, clicks_at, clicks_of_days, known_before

_MOST_MOMENTS: Final = 3_000
_MOST_SCORES: Final = 32_000_000  # float32, of all items at all moments
FEWEST_CLICKS: Final = 200


@dataclass(frozen=True)
class ReleaseMix:
    """What a release takes.

    Attributes:
        mix: its parameters.
        popularity: float32 (N,), `mix.popular * log(1 + clicks)` of the newest days of the log.
    """

    mix: Mix
    popularity: npt.NDArray[np.float32]


def release_mix(
    clicks: ClickLog, learned: Learned, until_ms: int, own_clicks: int
) -> ReleaseMix | None:
    """Fit a mix on the newest clicks, and count popularity at the end of the log.

    Args:
        clicks: all of them.
        learned: the release's model, trained on those up to `until_ms`.
        until_ms: time of the newest click that it has seen.
        own_clicks: own items are those of so many of the newest clicks.

    Returns:
        None where fewer than `FEWEST_CLICKS` are newer than that.
    """
    size = len(learned.item_ids)
    replay = Replay.since(clicks, until_ms + 1)
    replay = replay.sample(min(_MOST_MOMENTS, max(1, _MOST_SCORES // size)))
    if int((replay.ends - replay.begins).sum()) < FEWEST_CLICKS:
        return None
    known, codes = known_before(replay, learned, own_clicks)
    mix = fitted(known, clicks_at(replay, codes)).model_copy(update={"clicks": own_clicks})
    newest = np.array([int(clicks.timestamps_ms.max()) + 1])
    (counts,) = clicks_of_days(clicks, newest, POPULAR_DAYS)
    popularity = mix.popular * np.log1p(counts[codes[1 : size + 1]])
    return ReleaseMix(mix, popularity.astype(np.float32))
