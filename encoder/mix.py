"""Interests, own items and recent popularity as one score: what training fits and look-ups apply.

    score(u, i) = interests * max_k <v_k, x_i>  +  own(u, i)  +  popular * log(1 + p_i)

v_k are the user's interests, x_i is the item and p_i how often it was clicked of late. For an item
among the user's newest clicks

    own(u, i) = own + again * log(times) + later * log(1 + after) + alike * max_k <v_k, x_i>

by how often it is there and how many clicks came after its newest; for others it is 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

MOST_RECENT: Final = 200
"""Clicks that own items can be among."""
RECENT_BYTES: Final = 65_535
"""What a row's field `recent` can hold, Milvus's bound of a text."""


class Mix(BaseModel):
    """What each part counts.

    Attributes:
        interests: per unit of the best inner product.
        popular: per unit of log(1 + recent clicks).
        own: of an item of the window.
        again: of such an item, per unit of the log of its clicks there.
        later: of such an item, per unit of log(1 + clicks after its newest).
        alike: of such an item, per unit of the best inner product, beside `interests`: interests
            lie near what they come from, so it tells less there.
        clicks: so many of the newest clicks are those that own items are among.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interests: FiniteFloat = 0.0
    popular: FiniteFloat = 0.0
    own: FiniteFloat = 0.0
    again: FiniteFloat = 0.0
    later: FiniteFloat = 0.0
    alike: FiniteFloat = 0.0
    clicks: Annotated[int, Field(ge=1, le=MOST_RECENT)] = 50

    def weights(self) -> dict[str, float]:
        """All but `clicks`, by name."""
        return self.model_dump(exclude={"clicks"})

    def of_own(self, recent: Sequence[str | None]) -> dict[str, float]:
        """What a user's own items count, but for `alike`: by item id.

        Args:
            recent: the newest clicks, newest first; None for items that the release does not know.
        """
        after: dict[str, int] = {}
        times: dict[str, int] = {}
        for place, item_id in enumerate(recent):
            if item_id is not None:
                after.setdefault(item_id, place)
                times[item_id] = times.get(item_id, 0) + 1
        return {
            item_id: self.own
            + self.again * math.log(times[item_id])
            + self.later * math.log1p(place)
            for item_id, place in after.items()
        }

    def score(self, similarity: float, popularity: float, own: float | None) -> float:
        """Of one item.

        Args:
            similarity: its best inner product with an interest; 0 without interests.
            popularity: `popular * log(1 + p)`, as a release holds it.
            own: as `of_own` says; None if it is none of the user's.
        """
        score = self.interests * similarity + popularity
        return score if own is None else score + own + self.alike * similarity


def recent_text(quoted: Sequence[str]) -> str:
    """A row's field `recent`: the clicks' items, newest first, without the oldest that do not fit.

    Args:
        quoted: each as JSON.
    """
    text = f"[{','.join(quoted)}]"
    if 4 * len(text) <= RECENT_BYTES or len(text.encode()) <= RECENT_BYTES:
        return text
    size, kept = 1, 0
    for one in quoted:
        size += len(one.encode()) + 1
        if size > RECENT_BYTES:
            break
        kept += 1
    return f"[{','.join(quoted[:kept])}]"


def recent_of(text: str) -> list[str | None]:
    """The clicks in a row's field `recent`; none where it is empty."""
    return list(json.loads(text)) if text else []
