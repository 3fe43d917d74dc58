"""The clicks of the topic that a run of the trainer learns from, through its cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from encoder.click_history import ClicksExtent, clicks_extent
from encoder.settings import Settings
from mindstream.cached_clicks import cache_folder
from mindstream.progress import Waiting
from training import ranks
from training.click_cache import PART_CLICKS, ClickCache, Plan
from training.click_log import ClickLog, ClickLogError
from training.click_store import ClickStore, read_clicks

_GONE_ON_WITHIN_S: Final = 86_400  # a training of older clicks is not worth its end
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class _Moment:
    """What a run trains on: the topic as it was then."""

    at_ms: int
    extent: ClicksExtent


class _Note(BaseModel):
    """What a run that is killed leaves to the next, which goes on with the same clicks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    topic_id: str
    since_ms: int | None
    at_ms: int
    begins: dict[int, int]
    ends: dict[int, int]


def read_topic_clicks(
    settings: Settings,
    since_ms: int | None,
    *,
    note_folder: Path,
    sort_folder: Path,
    waiting: Waiting,
) -> ClickLog | ClickStore:
    """Bring the cache up to date, and read the clicks in it; in memory if they fit the buffer.

    Records that the contract rejects are left out, and so are clicks from before their user's
    erasure: what a user asked to forget is not learnt from either.

    Args:
        settings: of the topic and of the cache.
        since_ms: only clicks from this time on.
        note_folder: keeps what this run trains on, for one that goes on with it after a kill.
        sort_folder: where clicks are sorted that do not fit in memory; emptied first.
        waiting: is told how it goes.

    Raises:
        ClickLogError: there is nothing to train on.
        Unavailable: Kafka does not answer.
    """
    topic, folder = settings.kafka.clicks_topic, cache_folder(settings)
    current = clicks_extent(settings)
    moment = _agreed(settings, since_ms, note_folder, current)
    horizon_ms = None
    if settings.trainer.horizon_days is not None:
        horizon_ms = moment.at_ms - int(settings.trainer.horizon_days * _DAY_MS)
    plan = Plan(
        extent=moment.extent,
        horizon_ms=horizon_ms,
        erased_since_ms=moment.at_ms - int(settings.worker.erasure_retention_s * 1000),
        part_clicks=min(PART_CLICKS, settings.trainer.buffer_clicks),
    )
    cached = ClickCache(folder, settings, warn=waiting.tell).update(
        plan, current=current, progress=lambda records: waiting.describe(f"{records:,} new records")
    )
    waiting.tell(f"{cached.new:,} new clicks of {topic}, and {cached.kept:,} from the cache")
    if (first := ranks.as_the_first([cached.new + cached.kept])[0]) != cached.new + cached.kept:
        raise ClickLogError(
            f"{folder} holds {cached.new + cached.kept:,} clicks, and the first process's cache"
            f" {first:,}: they reach back differently; copy one of them to all machines"
        )
    if not cached.new + cached.kept:
        raise ClickLogError(f"{topic} holds no valid clicks; there is nothing to train on")
    bounds = [bound for bound in (since_ms, horizon_ms) if bound is not None]
    return read_clicks(
        folder,
        folder=sort_folder,
        buffer_clicks=settings.trainer.buffer_clicks,
        since_ms=max(bounds, default=None),
    )


def _agreed(
    settings: Settings, since_ms: int | None, folder: Path, current: ClicksExtent
) -> _Moment:
    """That of the first rank, on all."""
    own = _Moment(int(time.time() * 1000), current)
    if ranks.rank() == 0:
        own = _same_moment(settings, since_ms, folder, own)
    partitions = sorted(current.ends)
    begins = [own.extent.begins.get(partition, 0) for partition in partitions]
    ends = [own.extent.ends.get(partition, 0) for partition in partitions]
    at_ms, *agreed = ranks.as_the_first([own.at_ms, *begins, *ends])
    return _Moment(
        at_ms,
        ClicksExtent(
            current.topic_id,
            dict(zip(partitions, agreed[: len(partitions)], strict=True)),
            dict(zip(partitions, agreed[len(partitions) :], strict=True)),
        ),
    )


def _same_moment(settings: Settings, since_ms: int | None, folder: Path, now: _Moment) -> _Moment:
    """That of the run that was killed after its first checkpoint, or else now.

    Clicks go on arriving, and a training goes on only from a checkpoint of the same clicks.
    """
    path = folder / "clicks.json"
    topic, topic_id = settings.kafka.clicks_topic, now.extent.topic_id
    try:
        noted = _Note.model_validate_json(path.read_bytes())
        asked = (noted.topic, noted.topic_id, noted.since_ms)
        fresh = now.at_ms - noted.at_ms < _GONE_ON_WITHIN_S * 1000
        begun = any(folder.glob("*.safetensors"))
        if fresh and begun and asked == (topic, topic_id, since_ms):
            return _Moment(noted.at_ms, ClicksExtent(topic_id, noted.begins, noted.ends))
    except (OSError, ValidationError):
        pass  # with other clicks, the checkpoint says that it is of another training
    note = _Note(
        topic=topic,
        topic_id=topic_id,
        since_ms=since_ms,
        at_ms=now.at_ms,
        begins=now.extent.begins,
        ends=now.extent.ends,
    )
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(note.model_dump_json())
    draft.replace(path)
    return now
