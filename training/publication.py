"""Publishes a release: its folder to where workers fetch it, its items to the store, its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from encoder.interest_index import InterestIndex
from encoder.release import Release
from encoder.release_store import store_release
from encoder.release_topic import Announcement, announce
from encoder.settings import Settings


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

    The announcement comes last, so that whoever reads it finds the folder and the items in place.
    Readers go on reading the release in use until workers have filled this one's interests.

    Args:
        release: verified.
        settings: where releases are stored and announced.
        index: the store to write items to.
        progress: is told how many of how many items are written.
    """
    url = release_url(settings.releases.url, release.name)
    store_release(release, url)
    index.create_release(release.name, release.manifest.width)
    for done in index.write_items(release.name, release.item_ids, release.items[1:]):
        progress(done, len(release.item_ids))
    announcement = Announcement(release=release.name, url=url)
    announce(settings.kafka, announcement)
    return announcement
