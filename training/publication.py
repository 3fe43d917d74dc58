"""Publishes a release: its folder to where workers fetch it, its items to the store, its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from encoder.further_items import FurtherItems
from encoder.interest_index import InterestIndex
from encoder.item_topic import read_items
from encoder.release import Release
from encoder.release_store import store_release
from encoder.release_topic import Announcement, announce
from encoder.retrieval import retrieved
from encoder.settings import Settings

_ITEMS_AT_ONCE: Final = 10_000
_WRITE_BUDGET_S: Final = 60.0


def release_url(root: str, name: str) -> str:
    """Where a release lies under a root; a local root is made absolute, since workers read it."""
    if "://" in root:
        return f"{root.rstrip('/')}/{name}"
    return str(Path(root).resolve() / name)


def publish(
    release: Release,
    settings: Settings,
    index: InterestIndex,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Announcement:
    """Make a release available to workers and readers. May be repeated with the same outcome.

    The announcement comes last, so that whoever reads it finds the folder and the items in place,
    also those that the items topic has by now, and without those that it withdrew. Readers go on
    reading the release in use until workers have filled this one's interests.

    Args:
        release: verified.
        settings: where releases are stored and announced.
        index: the store to write items to.
        progress: is told how many of how many items are written.
    """
    url = release_url(settings.releases.url, release.name)
    store_release(release, url)
    mix = release.manifest.mix
    index.create_release(release.name, release.manifest.width, mixed=mix is not None)
    if mix is not None and release.popularity is not None:
        index.mixes.write(release.name, mix, release.item_ids, release.popularity)
    items = read_items(settings.kafka)
    further, said = FurtherItems(release), items.since({})
    for record in said:
        further.put(record.item_id, record.fields())
    withdrawn = {record.item_id for record in said if record.withdrawn}
    rows = [row for row, one in enumerate(release.item_ids, start=1) if one not in withdrawn]
    item_ids = [release.item_ids[row - 1] for row in rows]
    vectors = release.items[rows] if withdrawn else release.items[1:]
    for done in index.write_items(release.name, item_ids, vectors):
        progress(done, len(item_ids))
    before = index.items.withdrawn(release.name)  # if this is not the first time
    for start in range(0, len(said), _ITEMS_AT_ONCE):
        changes = retrieved(further, said[start : start + _ITEMS_AT_ONCE], before)
        index.items.change(release.name, changes, budget_s=_WRITE_BUDGET_S)
    announcement = Announcement(release=release.name, url=url, items=items.offsets)
    announce(settings.kafka, announcement)
    return announcement
