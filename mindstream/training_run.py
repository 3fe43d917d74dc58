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
from encoder.mix import MOST_RECENT
from encoder.release import Release, ReleaseError, ReleaseUnavailableError, forced
from encoder.release_store import fetch_release, store_beside
from encoder.release_topic import read_releases
from encoder.settings import Settings
from mindstream.cached_clicks import training_lock
from mindstream.one_at_a_time import only_one
from mindstream.progress import Waiting
from mindstream.release_switch import prune, switch
from mindstream.topic_clicks import read_topic_clicks
from training import ranks
from training.checkpoint import CheckpointError, Checkpoints
from training.click_log import ClickLog
from training.click_store import ClickStore, read_clicks
from training.fit import Progress, ProgressCallback
from training.gate import judge
from training.item_reader import catalogue_from_topic
from training.preset import TrainingConfig
from training.publication import publish
from training.trainer import help_training, train_release

GATE_FILE: Final = "gate.json"
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class ReleaseRefused(Exception):  # noqa: N818  "refused" is how it is said
    """The gate refuses a release; the message says why, and where it is kept."""


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
    force: bool = False,
) -> Release | None:
    """Read clicks, from Parquet (a file or a folder) or else from the topic; train and publish.

    Started again after it was killed, it goes on where it was. A checkpoint of other clicks or
    another config is moved aside, which is told, and training starts anew. Under `torchrun` all
    ranks read and train, and the first writes and publishes.

    Args:
        settings: of all that is read and written.
        parquet: a file of clicks; None for the topic.
        since_ms: only clicks from then on.
        console: where progress is shown.
        previous: folder or URL of the release to start from; None for the one in use.
        cold: start from none.
        force: publish also what the gate refuses, which is noted in its manifest.

    Returns:
        The release; None on the ranks that only help.

    Raises:
        ClickLogError: the clicks cannot be read, or are too few.
        ReleaseError: what `previous` names is not a release.
        ReleaseRefused: the gate refuses the release; it is kept, with the gate's report.
        RunsAlready: another training runs.
        Unavailable: Kafka or Milvus does not answer.
    """
    checkpoints = Checkpoints(
        Path(settings.releases.cache) / "checkpoint", settings.trainer.checkpoint_every_s
    )
    lock = training_lock(settings, ranks.rank())
    with only_one(lock, "training with this cache"), Waiting(console) as waiting:

        def run() -> Release | None:
            return _run(
                settings, parquet, since_ms, checkpoints, waiting, previous, cold=cold, force=force
            )

        try:
            return run()
        except CheckpointError as error:
            ranks.wait_for_all()  # each has seen it
            if ranks.rank() == 0:
                aside = set_aside(checkpoints.folder)
                waiting.tell(f"training anew, with the checkpoint moved to {aside}: {error}")
            ranks.wait_for_all()
            return run()
        finally:
            shutil.rmtree(click_folder(settings), ignore_errors=True)


def _run(
    settings: Settings,
    parquet: Path | None,
    since_ms: int | None,
    checkpoints: Checkpoints,
    waiting: Waiting,
    previous: str | None,
    *,
    cold: bool,
    force: bool,
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
        log = read_topic_clicks(
            settings,
            since_ms,
            note_folder=checkpoints.folder,
            sort_folder=click_folder(settings),
            waiting=waiting,
        )
    in_use = previous_release(settings, None, waiting)
    start = in_use if previous is None else previous_release(settings, previous, waiting)
    start = None if cold else start
    if ranks.rank() > 0:
        help_training(
            log,
            config=training_config(settings),
            progress=_shown(waiting),
            checkpoints=checkpoints,
            previous=start,
        )
        ranks.wait_for_all()
        return None
    work = Path(settings.releases.cache) / "training"
    release = train(log, settings, work, waiting, checkpoints, start)
    ranks.wait_for_all()  # until each has read the last checkpoint
    shutil.rmtree(checkpoints.folder, ignore_errors=True)
    waiting.start("comparing it with what is there")
    release = pass_the_gate(release, log, settings, in_use, start, waiting, force=force)
    put_into_use(release, settings, waiting)
    return release


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


def click_folder(settings: Settings) -> Path:
    """Where this rank sorts the clicks that do not fit in memory."""
    return Path(settings.releases.cache) / f"clicks_{ranks.rank()}"


def set_aside(folder: Path) -> Path:
    """Move a folder of checkpoints out of the way, replacing one moved before."""
    aside = folder.with_name(f"{folder.name}_set_aside")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def training_config(settings: Settings) -> TrainingConfig:
    """The default preset with what the settings change; ranks of a machine share its cores.

    Without marks where there is a mix, which leaves out own items by name.
    """
    marks = settings.trainer.marks and not settings.trainer.mix
    threads = settings.trainer.threads or max(1, usable_cores() // ranks.on_this_machine())
    return TrainingConfig(
        examples=settings.trainer.examples or TrainingConfig.examples,
        holdout=settings.trainer.holdout,
        seed=settings.trainer.seed,
        threads=threads,
        window_length=settings.trainer.window_length or settings.window_length,
        trial_marks=TrainingConfig.trial_marks if marks else 0,
    )


def own_clicks(settings: Settings) -> int | None:
    """Of how many clicks the items are a user's own, in a release's mix; None for no mix."""
    return min(settings.window_length, MOST_RECENT) if settings.trainer.mix else None


def train(
    log: ClickLog | ClickStore,
    settings: Settings,
    work: Path,
    waiting: Waiting,
    checkpoints: Checkpoints | None = None,
    previous: Release | None = None,
) -> Release:
    """Train on a log and write the release to the folder `work`, which is emptied first.

    Raises:
        CheckpointError: a checkpoint is of another training.
    """
    config = training_config(settings)
    shutil.rmtree(work, ignore_errors=True)
    waiting.start("training")

    return train_release(
        log,
        work,
        created_at=datetime.now(UTC),
        config=config,
        progress=_shown(waiting),
        checkpoints=checkpoints,
        previous=previous,
        notice=waiting.start,
        catalogue=catalogue_from_topic(settings, waiting.tell),
        own_clicks=own_clicks(settings),
    )


def pass_the_gate(
    release: Release,
    log: ClickLog | ClickStore,
    settings: Settings,
    in_use: Release | None,
    previous: Release | None,
    waiting: Waiting,
    *,
    force: bool,
) -> Release:
    """Compare a release with what is there; the report goes into its folder.

    Raises:
        ReleaseRefused: it falls behind, and is not forced. Its folder is kept for a look at it.
    """
    report = judge(
        release,
        log.sample() if isinstance(log, ClickStore) else log,
        margin=settings.trainer.gate_margin,
        in_use=in_use,
        previous=previous,
        seed=settings.trainer.seed,
    )
    waiting.tell(f"the gate: {report}")
    used = report.model_copy(update={"forced": force and not report.passed})
    (release.folder / GATE_FILE).write_text(used.model_dump_json(indent=2) + "\n", "utf-8")
    if report.passed:
        return release
    if force:
        waiting.tell(f"going into use all the same: {'; '.join(report.reasons)}")
        return forced(release)
    kept = release.folder.parent / "refused" / release.name
    kept.parent.mkdir(exist_ok=True)
    release.folder.rename(kept)
    raise ReleaseRefused(
        f"release {release.name} is refused: {'; '.join(report.reasons)}. It is kept in {kept},"
        f" with the report in {GATE_FILE}; `mindstream train --force` puts one into use all the"
        " same"
    )


def put_into_use(release: Release, settings: Settings, waiting: Waiting) -> None:
    """Publish a release, and have readers go over to it.

    Raises:
        Unavailable: workers do not fill it in time, or a service does not answer.
    """
    waiting.start(f"publishing release {release.name}")
    index = InterestIndex(settings.milvus)
    try:
        announcement = publish(release, settings, index, progress=waiting.advance_to)
        if (report := release.folder / GATE_FILE).exists():
            store_beside(announcement.url, GATE_FILE, report.read_text("utf-8"))
        in_use, known = index.release_in_use(), read_releases(settings.kafka)
        # Readers' first release is one that workers point them at.
        if in_use is not None and known.announcement(in_use.name) is not None:
            waiting.start(f"going over to release {release.name}")
            switch(settings, index, release.name, progress=waiting.show, tell=waiting.tell)
            prune(settings, index, grace_s=settings.releases.grace_s)
    finally:
        index.close()
        close_embedded(settings.milvus.uri)


def _shown(waiting: Waiting) -> ProgressCallback:
    """Shows the newest step; where nothing can change in place, a line per measured recall."""
    measured: list[float | None] = [None]

    def show(at: Progress) -> None:
        waiting.show(str(at), at.done, at.total)
        if not waiting.animated and at.recall != measured[0]:
            measured[0] = at.recall
            waiting.tell(f"{at}, step {at.done:,} of {at.total:,}")

    return show
