"""Turns packed windows into rows for the store, by one release's encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consumers.packed_window import ItemCodes, click_columns
from encoder.further_items import FurtherItems
from encoder.interests import (
    ClickColumns,
    InterestRows,
    compute_interests,
    interest_counts,
    interest_key,
)
from encoder.item_fields import FieldValue
from encoder.mind_encoder import MindEncoder


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows to write, and keys under which there must be no row.

    Attributes:
        rows: the users' interests.
        stale_keys: keys that may be in the store and must not stay there.
    """

    rows: InterestRows
    stale_keys: list[str]


class WindowEncoder:
    """Encodes packed windows. Knows which item code is which row of the release's table."""

    def __init__(self, encoder: MindEncoder, codes: ItemCodes) -> None:
        self._encoder = encoder
        self._codes = codes
        self._row_of_code: NDArray[np.int32] = np.zeros(0, np.int32)

    def encode(
        self,
        user_ids: Sequence[str],
        packed: Sequence[bytes],
        before: Sequence[bytes | None] | None,
    ) -> Encoded:
        """Encode windows of distinct users.

        Args:
            user_ids: B users.
            packed: their windows.
            before: the windows that the rows now in the store were made of, where that is known
                for certain; None for a user, or for all, of whom any row may be there.
        """
        rows, used = compute_interests(self._encoder, user_ids, self._columns(packed))
        slots = self._encoder.release.manifest.interests
        ends = np.full(len(user_ids), slots)
        fewer = np.flatnonzero(used < slots).tolist()
        known = [(n, window) for n in fewer if before and (window := before[n]) is not None]
        if known:
            places, windows = zip(*known, strict=True)
            ends[list(places)] = self.counts(windows)
        stale_keys = [
            interest_key(user_ids[n], slot)
            for n in np.flatnonzero(used < ends).tolist()
            for slot in range(used[n], ends[n])
        ]
        return Encoded(rows, stale_keys)

    def put_item(
        self, item_id: str, fields: Mapping[str, FieldValue]
    ) -> tuple[int | None, list[str]]:
        """Say what is known of an item from now on, see `FurtherItems.put`.

        Returns:
            The code of the item whose windows are to be encoded anew, None where there is no need,
            and what is wrong with its fields.
        """
        changed, problems = self._encoder.further.put(item_id, fields)
        code = self._codes.find(item_id) if changed else None
        if code is not None and code < len(self._row_of_code):
            self._row_of_code[code] = self._encoder.further.row(item_id)
        return code, problems

    @property
    def further(self) -> FurtherItems:
        """The items that the release was not trained on; `put_item` changes them."""
        return self._encoder.further

    def counts(self, packed: Sequence[bytes]) -> NDArray[np.int64]:
        """How many interests each window has, without encoding it: int64 (B,)."""
        return interest_counts(self._encoder.release, self._columns(packed))

    def _columns(self, packed: Sequence[bytes]) -> ClickColumns:
        clicks, counts = click_columns(packed)
        if len(self._row_of_code) < len(self._codes):
            fresh = self._encoder.rows(self._codes.items(len(self._row_of_code)))
            self._row_of_code = np.concatenate([self._row_of_code, fresh])
        rows = self._row_of_code[clicks["code"]] if len(clicks) else np.zeros(0, np.int32)
        return ClickColumns(np.ascontiguousarray(clicks["timestamp_ms"]), rows, counts)
