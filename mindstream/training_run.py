"""One run of the trainer: clicks in, a published release out."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from encoder.click_history import click_ends
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.milvus_client import close_embedded
from encoder.release import Release
from encoder.settings import Settings
from mindstream.progress import Waiting
from training import ranks
from training.checkpoint import CheckpointError, Checkpoints
from training.click_log import ClickLog
from training.click_reader import click_log_from_topic
from training.click_store import ClickStore, read_clicks
from training.fit import Progress, ProgressCallback
from training.preset import TrainingConfig
from training.publication import publish
from training.trainer import help_training, train_release

_GONE_ON_WITHIN_S: Final = 86_400  # a training of older clicks is not worth its end
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
) -> Release | None:
    """Read clicks, from Parquet (a file or a folder) or else from the topic; train and publish.

    Started again after it was killed, it goes on where it was. A checkpoint of other clicks or
    another config is moved aside, which is told, and training starts anew. Under `torchrun` all
    ranks read and train, and the first writes and publishes.

    Returns:
        The release; None on the ranks that only help.

    Raises:
        ClickLogError: the clicks cannot be read, or are too few.
        Unavailable: Kafka or Milvus does not answer.
    """
    checkpoints = Checkpoints(
        Path(settings.releases.cache) / "checkpoint", settings.trainer.checkpoint_every_s
    )
    with Waiting(console) as waiting:
        try:
            return _run(settings, parquet, since_ms, checkpoints, waiting)
        except CheckpointError as error:
            ranks.wait_for_all()  # each has seen it
            if ranks.rank() == 0:
                aside = set_aside(checkpoints.folder)
                waiting.tell(f"training anew, with the checkpoint moved to {aside}: {error}")
            ranks.wait_for_all()
            return _run(settings, parquet, since_ms, checkpoints, waiting)
        finally:
            shutil.rmtree(click_folder(settings), ignore_errors=True)


def _run(
    settings: Settings,
    parquet: Path | None,
    since_ms: int | None,
    checkpoints: Checkpoints,
    waiting: Waiting,
) -> Release | None:
    waiting.start(f"reading clicks from {parquet or settings.kafka.clicks_topic}")
    log: ClickLog | ClickStore
    if parquet is not None:
        log = read_clicks(
            parquet,
            folder=click_folder(settings),
            buffer_clicks=settings.trainer.buffer_clicks,
            since_ms=since_ms,
        )
    else:
        log = click_log_from_topic(
            settings,
            since_ms=since_ms,
            ends=_ends(settings, since_ms, checkpoints.folder),
            progress=lambda clicks: waiting.describe(f"{clicks:,} clicks"),
        )
    if ranks.rank() > 0:
        help_training(
            log, config=training_config(settings), progress=_shown(waiting), checkpoints=checkpoints
        )
        ranks.wait_for_all()
        return None
    work = Path(settings.releases.cache) / "training"
    release = train_and_publish(log, settings, work, waiting, checkpoints)
    ranks.wait_for_all()  # until each has read the last checkpoint
    shutil.rmtree(checkpoints.folder, ignore_errors=True)
    return release


def click_folder(settings: Settings) -> Path:
    """Where this rank sorts the clicks that do not fit in memory."""
    return Path(settings.releases.cache) / f"clicks_{ranks.rank()}"


def _ends(settings: Settings, since_ms: int | None, folder: Path) -> dict[int, int]:
    """Those of the first rank, on all."""
    first = ranks.rank() == 0
    ends = same_ends(settings, since_ms, folder) if first else click_ends(settings)
    partitions = sorted(ends)
    agreed = ranks.as_the_first([ends[partition] for partition in partitions])
    return dict(zip(partitions, agreed, strict=True))


def same_ends(settings: Settings, since_ms: int | None, folder: Path) -> dict[int, int]:
    """Where to stop reading the clicks: where the run did that was killed, or else at their ends.

    Clicks go on arriving, and a training goes on only from a checkpoint of the same clicks.
    """
    path = folder / "clicks.json"
    asked = {"topic": settings.kafka.clicks_topic, "since_ms": since_ms}
    try:
        noted = json.loads(path.read_text())
        fresh = time.time() - noted["at_s"] < _GONE_ON_WITHIN_S
        if fresh and noted["asked"] == asked:
            return {int(partition): end for partition, end in noted["ends"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # with other clicks, the checkpoint says that it is of another training
    ends = click_ends(settings)
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"at_s": time.time(), "asked": asked, "ends": ends}))
    draft.replace(path)
    return ends


def set_aside(folder: Path) -> Path:
    """Move a folder of checkpoints out of the way, replacing one moved before."""
    aside = folder.with_name(f"{folder.name}_set_aside")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def training_config(settings: Settings) -> TrainingConfig:
    """The default preset with what the settings change; ranks of a machine share its cores."""
    threads = settings.trainer.threads or max(1, usable_cores() // ranks.on_this_machine())
    return TrainingConfig(
        examples=settings.trainer.examples or TrainingConfig.examples,
        holdout=settings.trainer.holdout,
        seed=settings.trainer.seed,
        threads=threads,
        window_length=settings.window_length,
    )


def train_and_publish(
    log: ClickLog | ClickStore,
    settings: Settings,
    work: Path,
    waiting: Waiting,
    checkpoints: Checkpoints | None = None,
) -> Release:
    """Train on a log and publish the release; `work` is a folder to write it in first.

    Raises:
        CheckpointError: a checkpoint is of another training.
    """
    config = training_config(settings)
    shutil.rmtree(work, ignore_errors=True)
    waiting.start("training")

    release = train_release(
        log,
        work,
        created_at=datetime.now(UTC),
        config=config,
        progress=_shown(waiting),
        checkpoints=checkpoints,
    )
    waiting.start(f"publishing release {release.name}")
    index = InterestIndex(settings.milvus)
    try:
        publish(release, settings, index, progress=waiting.advance_to)
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
    return release


def _shown(waiting: Waiting) -> ProgressCallback:
    """Shows the newest step; where nothing can change in place, a line per measured recall."""
    measured: list[float | None] = [None]

    def show(at: Progress) -> None:
        waiting.show(str(at), at.done, at.total)
        if not waiting.animated and at.recall != measured[0]:
            measured[0] = at.recall
            waiting.tell(f"{at}, step {at.done:,} of {at.total:,}")

    return show
