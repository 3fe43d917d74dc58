"""Turns the clicks topic into a click log to train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from encoder.click import Click, Erasure
from encoder.click_history import read_click_topic
from encoder.settings import Settings
from encoder.window import NEVER
from training.click_log import ClickLog


def click_log_from_topic(
    settings: Settings,
    *,
    since_ms: int | None = None,
    ends: Mapping[int, int] | None = None,
    progress: Callable[[int], None] = lambda clicks: None,
) -> ClickLog:
    """Every valid click on the topic, as the update service would accept it.

    Records that the contract rejects are left out, and so are clicks from before their user's
    erasure: what a user asked to forget is not learnt from either.

    Args:
        settings: where the topic is.
        since_ms: read from the records produced at or after this time; from the first if None.
        ends: only the records before these offsets, by partition (`click_ends`).
        progress: is told how many clicks are read so far.

    Raises:
        Unavailable: Kafka does not answer.
    """
    clicks: list[Click] = []
    erased_at_ms: dict[str, int] = {}
    for events in read_click_topic(settings, since_ms=since_ms, ends=ends):
        for event in events:
            if isinstance(event, Click):
                clicks.append(event)
            elif isinstance(event, Erasure):
                known = erased_at_ms.get(event.user_id, NEVER)
                erased_at_ms[event.user_id] = max(known, event.up_to_ms)
        progress(len(clicks))
    kept = [c for c in clicks if c.timestamp_ms > erased_at_ms.get(c.user_id, NEVER)]
    return ClickLog.from_arrays(
        [c.user_id for c in kept], [c.item_id for c in kept], [c.timestamp_ms for c in kept]
    )
