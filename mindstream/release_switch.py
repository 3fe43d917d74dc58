"""Points readers at another release once it is filled and proven to be, and back again."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import InterestIndex, ReleaseInUse
from encoder.release import Release
from encoder.release_store import fetch_release, store_beside
from encoder.release_topic import (
    ReleaseFollower,
    ReleaseLog,
    Use,
    announce,
    note_dropped,
    note_use,
    read_releases,
    withdraw,
)
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.window import Window
from mindstream.certificate import CERTIFICATE_FILE, Certificate, certify
from mindstream.release_drift import note_drift, predecessor

SAMPLE: Final = 1000
AGREE_WITHIN_S: Final = 60.0
_POLL_S: Final = 0.2
_LET_GO_S: Final = 30.0

log = structlog.get_logger()


def switch(
    settings: Settings,
    index: InterestIndex,
    name: str,
    *,
    sample: int = SAMPLE,
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Certificate:
    """Wait until workers have filled a release, prove it, and point readers at it.

    May be repeated with the same outcome, also after it was killed.

    Args:
        settings: where everything is, and how long to wait.
        index: the store.
        name: of the release; it is announced.
        sample: users to compare bit for bit.
        progress: is told what is being done, and how many partitions of how many are filled.
        tell: is given a line that says what the switch changed for the users who were compared.

    Returns:
        The certificate, which is stored beside the release; what changed is, too.

    Raises:
        NotFilled: the store does not hold what it should; readers stay where they are.
        Unavailable: workers did not fill it in time, or a service does not answer.
    """
    partitions = check_topics(settings.kafka)
    release = announced_release(settings, read_releases(settings.kafka), name)
    drawn: list[list[Window]] = []
    while True:
        wait_until_filled(settings, name, partitions, progress)
        certificate = certify(
            settings,
            index,
            release,
            partitions=partitions,
            sample=sample,
            within_s=AGREE_WITHIN_S,
            progress=lambda doing: progress(doing, partitions, partitions),
            drew=drawn.append,
        )
        known = read_releases(settings.kafka)
        announced = known.announcement(name)
        if announced is not None and known.is_filled(name, partitions):
            break  # else a partition went to a worker that does not serve it, meanwhile
    store_beside(announced.url, CERTIFICATE_FILE, certificate.model_dump_json(indent=2))
    slots = release.manifest.interests
    in_use = index.release_in_use()
    _point_at(settings, index, known, in_use, name, slots)
    moved = in_use is not None and in_use.name != name  # else it is repeated, after it was killed
    left = in_use.name if in_use is not None and moved else predecessor(known, name)
    fetch = partial(announced_release, settings, known)
    note_drift(settings, index.items, announced.url, left, release, fetch, drawn[-1], tell)
    return certificate


def rollback(settings: Settings, index: InterestIndex) -> Use:
    """Point readers back at the release they read before, which is kept up to date for that.

    Never at one that they were pointed back from, and not twice in a row: what is meant by a second
    time is for `switch` to be told by name.

    Raises:
        Misconfigured: there is none, it is no longer kept up to date, or the release in use is
            one that readers were pointed back at.
    """
    in_use = index.release_in_use()
    known = read_releases(settings.kafka)
    last = next((u for u in known.used if in_use is not None and u.release == in_use.name), None)
    if last is not None and last.back_from is not None:
        others = [one.release for one in known.announced if one.release != last.release]
        raise Misconfigured(
            f"readers were pointed back at release {last.release} already, from {last.back_from}."
            f" Others that are kept: {', '.join(others) or 'none'}; `mindstream release use NAME`"
            " points readers at one of them"
        )
    before = [one for one in known.used if in_use is None or one.release != in_use.name]
    kept = [
        one
        for one in before
        if known.announcement(one.release) is not None and one.release not in known.found_bad
    ]
    if not kept:
        raise Misconfigured(
            "there is no release to go back to: none that readers read before is kept, but for"
            " those that they were pointed back from (MINDSTREAM_RELEASES__GRACE_S says for how"
            " long one is)"
        )
    to = kept[-1]
    of = {name: {p for release, p in known.filled if release == name} for name, _ in known.filled}
    kept_up = of.get(to.release, set())
    if in_use is None or not kept_up or not kept_up >= of.get(in_use.name, set()):
        raise Misconfigured(
            f"release {to.release} is not kept up to date on every partition; are all workers"
            f" running? `mindstream release use {to.release}` waits until it is"
        )
    back = Use(
        release=to.release,
        slots=to.slots,
        at_ms=int(time.time() * 1000),
        back_from=in_use.name,
    )
    _note_first(settings, known, in_use)
    # Before readers are there: if this process died in between, another call must not take them
    # to the release that they left.
    note_use(settings.kafka, back)
    index.use_release(back.release, back.slots)
    log.info("release.in_use", release=back.release, before=in_use.name, back=True)
    return back


def prune(settings: Settings, index: InterestIndex, *, grace_s: float) -> list[str]:
    """Withdraw releases that readers left longer ago than the grace time, and drop their rows.

    Releases that no reader has read are kept while they are newer than the one in use, or that has
    not been in use for the grace time: they may be about to be. What an earlier call withdrew, and
    did not come to drop, is dropped.

    Returns:
        Their names.

    Raises:
        Unavailable: Kafka or the store does not answer.
    """
    known = read_releases(settings.kafka)
    in_use = index.release_in_use()
    if in_use is None or known.announcement(in_use.name) is None:
        return []
    names = [one.release for one in known.announced]
    older = set(names[: names.index(in_use.name)])
    left_at_ms = {
        before.release: after.at_ms
        for before, after in zip(known.used, known.used[1:], strict=False)
    }
    until_ms = int((time.time() - grace_s) * 1000)
    used_at_ms = {use.release: use.at_ms for use in known.used}
    for name in older - used_at_ms.keys():  # never used, and another one has come since
        left_at_ms[name] = used_at_ms.get(in_use.name, until_ms)
    due = [
        name for name in names if name != in_use.name and left_at_ms.get(name, until_ms) < until_ms
    ]
    for name in due:
        withdraw(settings.kafka, name)
    due += [name for name in known.dropping if name not in names]
    _wait_until_let_go(settings, set(due))
    dropped = []
    for name in due:
        now_in_use = index.release_in_use()
        if now_in_use is not None and now_in_use.name == name:  # somebody went back to it meanwhile
            announce(settings.kafka, next(one for one in known.announced if one.release == name))
        else:
            index.drop_release(name)
            dropped.append(name)
            log.info("release.dropped", release=name)
        note_dropped(settings.kafka, name)
    return dropped


def announced_release(settings: Settings, known: ReleaseLog, name: str) -> Release:
    """Fetch and verify a release by its name.

    Raises:
        Misconfigured: it is not announced, or damaged.
    """
    announcement = known.announcement(name)
    if announcement is None:
        names = ", ".join(one.release for one in known.announced) or "none"
        raise Misconfigured(f"no release {name!r} is announced; announced are: {names}")
    return fetch_release(announcement.url, Path(settings.releases.cache))


def wait_until_filled(
    settings: Settings,
    name: str,
    partitions: int,
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> None:
    """Wait until every partition is reported for a release.

    Raises:
        Unavailable: not within `switch_timeout_s`; names the partitions that are missing.
    """
    deadline = time.monotonic() + settings.releases.switch_timeout_s
    follower = ReleaseFollower(settings.kafka)
    try:
        while True:
            known = follower.poll()
            if known.announcement(name) is None:
                raise Misconfigured(f"release {name} is not announced, or was withdrawn")
            missing = [p for p in range(partitions) if (name, p) not in known.filled]
            progress("waiting for workers to fill it", partitions - len(missing), partitions)
            if not missing:
                return
            time.sleep(_POLL_S)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"workers have not filled release {name} on partitions {missing} within"
                    f" MINDSTREAM_RELEASES__SWITCH_TIMEOUT_S"
                    f" ({settings.releases.switch_timeout_s:g} s); their logs say why. Readers stay"
                    f" where they are; `mindstream release use {name}` goes on from here"
                )
    finally:
        follower.close()


def _wait_until_let_go(settings: Settings, names: set[str]) -> None:
    """Until no worker keeps these up to date. One that is gone cannot say so: do not wait long."""
    deadline = time.monotonic() + _LET_GO_S
    follower = ReleaseFollower(settings.kafka)
    try:
        while time.monotonic() < deadline:
            if not names & {release for release, _ in follower.poll().filled}:
                return
            time.sleep(_POLL_S)
    finally:
        follower.close()
    log.warning("release.not_let_go", releases=sorted(names), waited_s=_LET_GO_S)


def _point_at(
    settings: Settings,
    index: InterestIndex,
    known: ReleaseLog,
    before: ReleaseInUse | None,
    name: str,
    slots: int,
) -> None:
    _note_first(settings, known, before)
    index.use_release(name, slots)
    stays = before is not None and before.name == name
    if not (stays and known.used and known.used[-1].release == name):  # else it is noted
        note_use(settings.kafka, Use(release=name, slots=slots, at_ms=int(time.time() * 1000)))
    log.info("release.in_use", release=name, before=before and before.name)


def _note_first(settings: Settings, known: ReleaseLog, in_use: ReleaseInUse | None) -> None:
    """Note the first release, which a worker pointed readers at.

    Before readers leave it, because it could not be found again if this process died in between.
    """
    if in_use is not None and in_use.name not in {use.release for use in known.used}:
        now_ms = int(time.time() * 1000)
        note_use(settings.kafka, Use(release=in_use.name, slots=in_use.slots, at_ms=now_ms))
