"""Measures how far a release departs from the one before it, and keeps it beside the release."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from encoder.errors import Misconfigured, Unavailable
from encoder.item_index import ItemIndex
from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from encoder.release_store import store_beside
from encoder.release_topic import ReleaseLog
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.window import Window
from mindstream.drift import DRIFT_FILE, Drift, measure_drift, stored_drift
from mindstream.live_release import LiveRelease
from mindstream.window_sample import draw_windows

log = structlog.get_logger()


def predecessor(known: ReleaseLog, release: str) -> str | None:
    """The release that readers read before this one did, or last of all; None if there is none."""
    names = [use.release for use in known.used]
    before = names[: names.index(release)] if release in names else names
    return before[-1] if before else None


def note_drift(
    settings: Settings,
    items: ItemIndex,
    url: str,
    before: str | None,
    release: Release,
    fetch: Callable[[str], Release],
    windows: Sequence[Window],
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Measure, tell, and store it beside a release that readers have gone over to.

    They are there already, so that what is in the way of it is logged, and raises nothing.

    Args:
        settings: how many threads encode.
        items: what the store retrieves beyond the releases' own items.
        url: where the release lies.
        before: the release that they left; there is nothing to measure without one.
        release: the one that they read now.
        fetch: opens a release by its name.
        windows: of users drawn at random.
        tell: is given a line to show.
    """
    if before is None:
        return
    try:
        drift = _between(settings, items, fetch(before), release, windows)
        store_beside(url, DRIFT_FILE, drift.model_dump_json(indent=2))
    except (Unavailable, Misconfigured) as exc:
        log.warning("release.drift_not_measured", release=release.name, error=str(exc))
        return
    log.info("release.drift", **drift.model_dump(mode="json"))
    tell(str(drift))


def drift_of(
    settings: Settings,
    items: ItemIndex,
    known: ReleaseLog,
    name: str | None,
    in_use: str | None,
    fetch: Callable[[str], Release],
    *,
    before: str | None = None,
    anew: bool = False,
    sample: int = 1000,
) -> Drift:
    """What lies beside a release, or else is measured with the windows of now.

    Args:
        settings: where everything is.
        items: what the store retrieves beyond the releases' own items.
        known: the releases topic.
        name: of the release; the one in use if None.
        in_use: that readers read.
        fetch: opens a release by its name.
        before: the release to compare with; the one that readers left for it if None.
        anew: measure, whatever lies there.
        sample: users to draw.

    Raises:
        Misconfigured: there is no such release, or none to compare it with.
        Unavailable: Kafka or the storage does not answer.
    """
    name = name or in_use
    if name is None:
        raise Misconfigured(f"no release is in use in {settings.milvus.uri}")
    release, announced = fetch(name), known.announcement(name)
    if announced is not None and before is None and not anew:
        stored = stored_drift(announced.url)
        if stored is not None:
            return stored
    before = before or predecessor(known, name)
    if before is None and not known.used and in_use != name:
        before = in_use  # the first, which is not noted before readers leave it
    if before is None:
        raise Misconfigured(f"readers read no release before {name}; name one with --before")
    windows = draw_windows(settings, check_topics(settings.kafka), sample, seed=0)
    return _between(settings, items, fetch(before), release, windows)


def _between(
    settings: Settings,
    items: ItemIndex,
    before: Release,
    release: Release,
    windows: Sequence[Window],
) -> Drift:
    threads = settings.worker.encoder_threads
    left, live = (LiveRelease(MindEncoder(one, threads)) for one in (before, release))
    for one in (left, live):
        one.follow(items)
    return measure_drift(left, live, windows)
