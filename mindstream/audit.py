"""Checks the store against a plain fold over the clicks topic.

The fold knows nothing of batches, windows topics, offsets or crashes: it reads every click, forms
each user's window by its definition, encodes it, and expects exactly those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from encoder.click import Click, Erasure
from encoder.click_history import read_click_topic
from encoder.interest_index import Interest, InterestIndex
from encoder.interests import ClickColumns, InterestRows, compute_interests, interest_key
from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from encoder.settings import Settings
from encoder.window import NEVER, Window, window_of

_ENCODE_USERS: Final = 2048
_EXAMPLES: Final = 5


@dataclass(slots=True)
class Audit:
    """What the comparison found.

    Attributes:
        clicks: valid clicks on the topic.
        rejected: records the contract rejects.
        users: users with a window.
        users_with_rows: those with a click on a known item.
        rows: rows expected.
        missing: keys expected but not stored.
        unexpected: keys stored but not expected.
        different: keys whose row differs in any field or any bit of its vector.
    """

    clicks: int = 0
    rejected: int = 0
    users: int = 0
    users_with_rows: int = 0
    rows: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def differences(self) -> int:
        """Rows that are not as they should be."""
        return len(self.missing) + len(self.unexpected) + len(self.different)

    def report(self) -> str:
        """One line, with examples of what is wrong."""
        lines = [
            f"{self.clicks} clicks, {self.rejected} rejected, {self.users} users,"
            f" {self.rows} rows, {self.differences} differences"
        ]
        for name in ("missing", "unexpected", "different"):
            keys: list[str] = getattr(self, name)
            if keys:
                lines.append(f"{name}: {len(keys)}, such as {', '.join(sorted(keys)[:_EXAMPLES])}")
        return "; ".join(lines)


def fold(settings: Settings, audit: Audit) -> dict[str, Window]:
    """Every user's window, from the set of that user's clicks on the topic.

    Args:
        settings: where the topic is, the window's length, how far ahead clicks may lie.
        audit: its counts of clicks and rejected records are set.
    """
    clicks: dict[str, set[tuple[int, str]]] = {}
    erased_at_ms: dict[str, int] = {}
    for events in read_click_topic(settings):
        for event in events:
            if isinstance(event, Click):
                audit.clicks += 1
                clicks.setdefault(event.user_id, set()).add((event.timestamp_ms, event.item_id))
            elif isinstance(event, Erasure):
                known = erased_at_ms.get(event.user_id, NEVER)
                erased_at_ms[event.user_id] = max(known, event.up_to_ms)
            else:
                audit.rejected += 1
    return {
        user_id: window_of(
            clicks.get(user_id, ()),
            length=settings.window_length,
            erased_at_ms=erased_at_ms.get(user_id, NEVER),
        )
        for user_id in clicks.keys() | erased_at_ms.keys()
    }


def columns_of(release: Release, windows: Iterable[Window]) -> ClickColumns:
    """Windows as the encoder's columns."""
    windows = list(windows)
    clicks = [click for window in windows for click in window.clicks]
    return ClickColumns(
        timestamps_ms=np.array([timestamp for timestamp, _ in clicks], np.int64),
        rows=release.rows(item for _, item in clicks),
        counts=np.array([len(window.clicks) for window in windows], np.int64),
    )


def encode_windows(encoder: MindEncoder, windows: dict[str, Window]) -> Iterator[InterestRows]:
    """The rows of users' interests, some users at a time."""
    users = iter(windows.items())
    while chunk := list(islice(users, _ENCODE_USERS)):
        user_ids, of_chunk = zip(*chunk, strict=True)
        rows, _ = compute_interests(encoder, user_ids, columns_of(encoder.release, of_chunk))
        yield rows


def audit_store(
    settings: Settings,
    index: InterestIndex,
    encoder: MindEncoder,
    *,
    notify: Callable[[str], None] = lambda doing: None,
) -> Audit:
    """Compare every row of a release's interests with the fold, bit for bit.

    The topic must be consumed to its end and no click be written meanwhile.
    """
    audit = Audit()
    release = encoder.release
    notify("reading every click")
    windows = fold(settings, audit)
    audit.users = len(windows)
    notify("reading every row")
    stored = {interest_key(row.user_id, row.slot): row for row in index.all_interests(release.name)}
    notify("encoding every window")
    for expected in encode_windows(encoder, windows):
        audit.rows += len(expected)
        audit.users_with_rows += len(set(expected.user_ids))
        for number, key in enumerate(expected.keys):
            row = stored.pop(key, None)
            if row is None:
                audit.missing.append(key)
            elif not _same(row, expected, number):
                audit.different.append(key)
    audit.unexpected.extend(stored)
    return audit


def _same(row: Interest, expected: InterestRows, number: int) -> bool:
    return (
        row.exemplar == expected.exemplars[number]
        and row.updated_at == int(expected.updated_at[number])
        and np.float32(row.weight) == expected.weights[number]
        and row.vector.tobytes() == expected.vectors[number].tobytes()
    )
