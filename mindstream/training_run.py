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
from encoder.release import Release
from encoder.release_topic import read_releases
from encoder.settings import Settings
from mindstream.progress import Waiting
from mindstream.release_switch import prune, switch
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
    settings: Settings, parquet: Path | None, since_ms: int | None, console: Console
) -> Release:
    """Read clicks, from a Parquet file or else from the topic; train and publish.

    Raises:
        ClickLogError: the clicks cannot be read, or are too few.
        Unavailable: Kafka or Milvus does not answer.
    """
    with Waiting(console) as waiting:
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
        return train_and_publish(log, settings, work, waiting)


def train_and_publish(log: ClickLog, settings: Settings, work: Path, waiting: Waiting) -> Release:
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
    )
    waiting.start(f"publishing release {release.name}")
    index = InterestIndex(settings.milvus)
    try:
        publish(release, settings, index, progress=waiting.advance_to)
        in_use, known = index.release_in_use(), read_releases(settings.kafka)
        # Readers' first release is one that workers point them at.
        if in_use is not None and known.announcement(in_use.name) is not None:
            waiting.start(f"going over to release {release.name}")
            switch(settings, index, release.name, progress=waiting.show)
            prune(settings, index, grace_s=settings.releases.grace_s)
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
    return release
