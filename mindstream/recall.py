"""Recall of live interests: each click predicted from the window just before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from encoder.click import Click
from encoder.interests import ClickColumns, encoder_inputs
from encoder.mind_encoder import MindEncoder
from encoder.nearest import nearest_rows
from encoder.window import Window, merge
from mindstream.audit import columns_of

_CHUNK: Final = 512


def prequential_recall(
    encoder: MindEncoder, history: Sequence[Click], replay: Sequence[Click], *, length: int, n: int
) -> float:
    """Share of the replayed clicks whose item is among the n nearest to its user's interests.

    The interests are those of the window before the click. A user's clicks of one moment are
    predicted from the same window, since nobody can tell their order. Clicks on items that the
    release does not know, or of users without interests, count as missed.

    Args:
        encoder: of the release that is judged.
        history: clicks before the replay, in time order.
        replay: clicks to predict, in time order.
        length: L, of the windows.
        n: how many items may be recommended.
    """
    windows: dict[str, Window] = {}
    for user_id, clicks in _by_user(history).items():
        windows[user_id] = merge(Window(), Window(tuple(clicks)), length=length)
    before: list[Window] = []
    targets: list[list[str]] = []
    for (user_id, timestamp_ms), items in _by_moment(replay).items():
        window = windows.get(user_id, Window())
        before.append(window)
        targets.append(items)
        seen = Window(tuple((timestamp_ms, item) for item in items))
        windows[user_id] = merge(window, seen, length=length)
    hits = 0
    for start in range(0, len(before), _CHUNK):
        stop = start + _CHUNK
        columns = columns_of(encoder.release, before[start:stop])
        for items, found in zip(targets[start:stop], _nearest(encoder, columns, n), strict=True):
            rows = encoder.release.rows(items)
            hits += sum(row in found for row in rows.tolist())
    return hits / max(1, len(replay))


def _by_user(clicks: Sequence[Click]) -> dict[str, list[tuple[int, str]]]:
    grouped: dict[str, list[tuple[int, str]]] = {}
    for click in clicks:
        grouped.setdefault(click.user_id, []).append((click.timestamp_ms, click.item_id))
    return grouped


def _by_moment(clicks: Sequence[Click]) -> dict[tuple[str, int], list[str]]:
    grouped: dict[tuple[str, int], list[str]] = {}
    for click in clicks:
        grouped.setdefault((click.user_id, click.timestamp_ms), []).append(click.item_id)
    return grouped


def _nearest(encoder: MindEncoder, columns: ClickColumns, n: int) -> list[set[int]]:
    """The rows of the n items nearest to any interest, per user; none without interests."""
    rows, ages = encoder_inputs(columns, window_length=encoder.release.manifest.window_length)
    batch = encoder.encode(rows, ages)
    found = nearest_rows(batch.vectors, batch.counts, encoder.release.items[1:], n) + 1
    return [{row for row in rows if row} for rows in found.tolist()]
