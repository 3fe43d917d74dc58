"""Follows the releases topic beside the loop, and loads releases before they are served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from consumers.served_releases import Served
from encoder.announced_items import Offsets
from encoder.errors import Misconfigured, Unavailable
from encoder.release import Release
from encoder.release_store import fetch_release
from encoder.release_topic import Announcement, ReleaseFollower
from encoder.settings import Settings

_FOLLOW_S: Final = 1.0
_RETRY_AFTER_S: Final = 30.0
_STOP_S: Final = 2.0

log = structlog.get_logger()


def fetch_announced(announcement: Announcement, settings: Settings) -> Release:
    """Fetch and verify a release that was announced.

    Raises:
        ReleaseError: it is not what was announced, or damaged.
        Misconfigured: it reads longer windows than this worker keeps.
        Unavailable: it could not be reached just now.
    """
    release = fetch_release(announcement.url, Path(settings.releases.cache))
    if release.name != announcement.release:
        raise Misconfigured(
            f"{announcement.url} holds release {release.name}, but was announced as"
            f" {announcement.release}; publish the release again"
        )
    if release.manifest.window_length > settings.window_length:
        raise Misconfigured(
            f"MINDSTREAM_WINDOW_LENGTH is {settings.window_length}, but release"
            f" {release.name} reads windows of {release.manifest.window_length} clicks"
        )
    return release


class ReleaseWatch:
    """Loads what is announced, on a thread of its own, and says what was withdrawn."""

    def __init__(self, settings: Settings, load: Callable[[Release, Offsets], Served]) -> None:
        """Do nothing before `start`.

        Args:
            settings: where releases are announced and kept.
            load: makes a release ready to be served.
        """
        self._settings = settings
        self._load = load
        self._lock = threading.Lock()
        self._known: set[str] = set()  # served, or on their way to it
        self._failed: dict[str, float] = {}  # release → seconds until it is tried again
        self._events: list[Served | str] = []
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)

    def start(self, served: set[str]) -> None:
        """Begin to follow.

        Args:
            served: releases that are served already.
        """
        self._known = set(served)
        self._thread.start()

    def take(self) -> list[Served | str]:
        """What happened since last asked, in order.

        Returns:
            Releases that are ready to be served, and names of those that were withdrawn.

        Raises:
            Whatever ended the thread.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            events, self._events = self._events, []
            return events

    def close(self) -> None:
        """Follow no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)  # it may be in the middle of fetching a release

    def _run(self) -> None:
        follower = ReleaseFollower(self._settings.kafka)
        try:
            while not self._stop.is_set():
                try:
                    self._follow(follower)
                except Unavailable as exc:
                    log.warning("releases.not_followed", error=str(exc))
                self._stop.wait(_FOLLOW_S)
        except BaseException as exc:
            with self._lock:
                self._failure = exc
        finally:
            follower.close()

    def _follow(self, follower: ReleaseFollower) -> None:
        announced = follower.poll().announced
        names = {one.release for one in announced}
        for name in self._known - names:
            self._known.discard(name)
            with self._lock:
                self._events.append(name)
        for one in announced:
            if one.release not in self._known and not self._stop.is_set():
                self._try(one)

    def _try(self, announcement: Announcement) -> None:
        name = announcement.release
        self._failed[name] = self._failed.get(name, 0.0) - _FOLLOW_S
        if self._failed[name] > 0:
            return
        try:
            served = self._load(fetch_announced(announcement, self._settings), announcement.items)
        except (Misconfigured, Unavailable) as exc:
            # The one in use is served on; without our reports nobody is pointed at this one.
            log.error("release.not_loaded", release=name, error=str(exc))
            self._failed[name] = _RETRY_AFTER_S
            return
        self._known.add(name)
        self._failed.pop(name)
        log.info("release.loaded", release=name)
        with self._lock:
            self._events.append(served)
