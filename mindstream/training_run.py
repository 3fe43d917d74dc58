"""One run of the trainer: clicks in, a published release out."""

from __future__ import annotations

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.milvus_client import close_embedded
from encoder.release import Release, ReleaseError, ReleaseUnavailableError, fetch_release
from encoder.release_topic import read_releases
from encoder.settings import Settings
from mindstream.progress import Waiting
from training.click_log import ClickLog
from training.click_reader import click_log_from_topic
from training.preset import TrainingConfig
from training.publication import publish
from training.trainer import train_release

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_interval(text: str) -> float:
    """Seconds from `90s`, `30m`, `6h` or `1d`.

    Raises:
        Misconfigured: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match or float(match[1]) <= 0:
        raise Misconfigured(f"--every {text!r}: write a number and s, m, h or d, such as 6h")
    return float(match[1]) * _UNITS_S[match[2]]


def usable_cores() -> int:
    """Cores that this process may use; a container's limit counts where the system tells it."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_training(
    settings: Settings,
    parquet: Path | None,
    since_ms: int | None,
    console: Console,
    *,
    previous: str | None = None,
    cold: bool = False,
) -> Release:
    """Read clicks, from a Parquet file or else from the topic; train and publish.

    Args:
        settings: of all that is read and written.
        parquet: a file of clicks; None for the topic.
        since_ms: only clicks from then on.
        console: where progress is shown.
        previous: folder or URL of the release to start from; None for the one in use.
        cold: start from none.

    Raises:
        ClickLogError: the clicks cannot be read, or are too few.
        ReleaseError: what `previous` names is not a release.
        Unavailable: Kafka or Milvus does not answer.
    """
    with Waiting(console) as waiting:
        start = None if cold else previous_release(settings, previous, waiting)
        waiting.start(f"reading clicks from {parquet or settings.kafka.clicks_topic}")
        if parquet is not None:
            log = ClickLog.from_parquet(parquet, since_ms=since_ms)
        else:
            log = click_log_from_topic(
                settings,
                since_ms=since_ms,
                progress=lambda clicks: waiting.describe(f"{clicks:,} clicks"),
            )
        work = Path(settings.releases.cache) / "training"
        return train_and_publish(log, settings, work, waiting, start)


def previous_release(settings: Settings, url: str | None, waiting: Waiting) -> Release | None:
    """The release at a URL; without one, the release in use if there is one that can be read.

    Raises:
        ReleaseError: there is no valid release at the URL.
        Unavailable: the storage, Kafka or Milvus does not answer.
    """
    cache = Path(settings.releases.cache)
    if url is not None:
        return fetch_release(url, cache, to_train=True)
    waiting.start("looking for the release in use")
    index = InterestIndex(settings.milvus)
    try:
        in_use = index.release_in_use()
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
    if in_use is None:
        return None
    urls = {one.release: one.url for one in read_releases(settings.kafka).announced}
    try:
        if in_use.name not in urls:
            raise ReleaseError(f"{in_use.name} is in use, but was not announced")
        return fetch_release(urls[in_use.name], cache, to_train=True)
    except ReleaseUnavailableError:
        raise
    except ReleaseError as error:
        waiting.start(f"starting anew, not from the release in use: {error}")
        return None


def train_and_publish(
    log: ClickLog,
    settings: Settings,
    work: Path,
    waiting: Waiting,
    previous: Release | None = None,
) -> Release:
    """Train on a log and publish the release; `work` is a folder to write it in first."""
    threads = settings.trainer.threads or usable_cores()
    config = TrainingConfig(
        examples=settings.trainer.examples or TrainingConfig.examples,
        holdout=settings.trainer.holdout,
        seed=settings.trainer.seed,
        threads=threads,
        window_length=settings.window_length,
    )
    shutil.rmtree(work, ignore_errors=True)
    waiting.start("training")

    release = train_release(
        log,
        work,
        created_at=datetime.now(UTC),
        config=config,
        progress=lambda at: waiting.show(at.stage, at.done, at.total),
        previous=previous,
        notice=waiting.start,
    )
    waiting.start(f"publishing release {release.name}")
    index = InterestIndex(settings.milvus)
    try:
        publish(release, settings, index, progress=waiting.advance_to)
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
    return release
