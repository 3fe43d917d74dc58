"""From clicks to a release folder: hold out, train, evaluate, export, write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np

from encoder.release import (
    Release,
    ReleaseError,
    TrainingRecord,
    default_release_name,
    write_release,
)
from training.checkpoint import Checkpoints
from training.click_log import ClickLog, ClickLogError
from training.click_store import ClickStore
from training.curve import Curve, as_lines, as_png
from training.evaluation import HeldOut, evaluate, evaluate_popularity
from training.export import check_graph, checked_windows, export_graph
from training.fit import Progress, ProgressCallback, torch_threads
from training.inference import encode_windows, item_vectors
from training.item_fields import Item, ItemFields, Kind, learn_fields
from training.lesson import Lesson
from training.model import Mind
from training.preset import TrainingConfig
from training.release_mix import release_mix
from training.replay import Learned
from training.sequences import Learnable, Sequences, item_counts
from training.warm_start import Previous, packed, parameters_of, succeeding_model

CURVES_FILE: Final = "curves.png"
CURVE_FILE: Final = "curve.jsonl"
_SAMPLE: Final = 500  # users that recall is measured on during training


@dataclass(frozen=True)
class Catalogue:
    """What is known of items beside their clicks.

    Attributes:
        kinds: name of each field to its kind, see `encoder.item_fields.ItemField`.
        items: item id to its fields' values; items and fields may be missing.
    """

    kinds: Mapping[str, Kind]
    items: Mapping[str, Item]

    def fields(self, item_ids: list[str]) -> ItemFields:
        """The fields of the items that are trained on, in the order of the item table."""
        items = [self.items.get(item, {}) for item in item_ids]
        return ItemFields.of(learn_fields(self.kinds, items), items)


def train_release(
    clicks: ClickLog | ClickStore,
    folder: Path,
    *,
    created_at: datetime,
    config: TrainingConfig | None = None,
    progress: ProgressCallback | None = None,
    checkpoints: Checkpoints | None = None,
    release: str | None = None,
    previous: Release | None = None,
    notice: Callable[[str], None] = lambda _: None,
    catalogue: Catalogue | None = None,
    own_clicks: int | None = None,
) -> Release:
    """Train on all but the newest clicks, measure on those, and write a release.

    Args:
        clicks: the log; the newest `config.holdout` of it, by time, is only measured on.
        folder: the release folder to create; it must not exist.
        created_at: when, with a time zone.
        config: how; the default preset if None.
        progress: told about every step.
        checkpoints: what a training of the same clicks and config goes on from if it was killed,
            with the same outcome; they stay for the caller to delete.
        release: its name; after `created_at` if None.
        previous: the release that this one succeeds: its parent, from which it starts if it can and
            to which it is aligned; see `training.warm_start`.
        notice: told whether it started from there.
        catalogue: the items' fields, with which the release can place items to come.
        own_clicks: fit on the held-out clicks what interests, the items of so many of a user's
            newest clicks and recent popularity count; None for a release without a mix. Of clicks
            that are larger than memory, or too few, it has none all the same.

    Returns:
        The release. Its metrics hold the measures on held-out clicks, the same for popularity
        (`popularity_…`), and `evaluated_users`; without users to measure on, just the latter. With
        a parent also `warm` and `item_cosine`, as in `training.warm_start.succeeding_model`.

    Raises:
        ClickLogError: there is nothing to learn from.
        ReleaseError: the folder exists or the name is not valid.
        CheckpointError: a checkpoint is of another training.
        ExportError: the exported graph disagrees with the model.
        ValueError: a value in the catalogue is not of its field's kind; names the field.
    """
    config = config or TrainingConfig()
    tell = progress or (lambda _: None)
    if folder.exists():
        raise ReleaseError(f"{folder} exists; a release is never changed in place, choose another")
    lesson = to_learn_from(clicks, config)
    item_ids, sequences, held_out = lesson.item_ids, lesson.sequences, lesson.held_out
    fields = None if catalogue is None else catalogue.fields(item_ids)
    curve = Curve(recall_on(held_out.sample(_SAMPLE), config) if len(held_out) else None)
    before = None if previous is None else Previous.of(previous)
    model, config, succession = succeeding_model(
        sequences,
        item_ids,
        config,
        before,
        progress,
        notice,
        fields=fields,
        checkpoints=checkpoints,
        curve=curve,
    )

    tell(Progress("evaluating", 0, 1))
    metrics = measure(model, sequences, held_out, config) | succession
    tell(Progress("evaluating", 1, 1))

    mixed = None
    if own_clicks and isinstance(clicks, ClickLog) and isinstance(sequences, Sequences):
        learned = Learned(model, config, sequences, item_ids, item_vectors(model))
        mixed = release_mix(clicks, learned, lesson.until_ms, own_clicks)
    if own_clicks:
        notice("no mix was fitted" if mixed is None else f"the mix: {mixed.mix}")

    tell(Progress("exporting", 0, 1))
    with torch_threads(config.threads):
        graph = export_graph(model)
        windows = checked_windows(
            next(sequences.blocks()).last_windows(config.window_length), config.window_length
        )
        check_graph(graph, model, windows)
    written = write_release(
        folder,
        encoder=graph,
        items=item_vectors(model),
        item_ids=item_ids,
        release=release or default_release_name(created_at),
        created_at=created_at,
        window_length=config.window_length,
        interests=config.interests,
        routing_iterations=config.routing_iterations,
        training=TrainingRecord(
            since_ms=lesson.since_ms,
            until_ms=lesson.until_ms,
            clicks=lesson.clicks,
            users=lesson.users,
            preset=config.name,
            seed=config.seed,
            hyper_parameters=config.hyper_parameters(),
        ),
        metrics=metrics,
        item_fields=model.field_vectors(),
        parent=None if previous is None else previous.name,
        parameters=packed(parameters_of(model)),
        mix=None if mixed is None else mixed.mix,
        popularity=None if mixed is None else mixed.popularity,
        marks=model.marks,
        further={CURVES_FILE: as_png(curve.points), CURVE_FILE: as_lines(curve.points)},
    )
    tell(Progress("exporting", 1, 1))
    return written


def help_training(
    clicks: ClickLog | ClickStore,
    *,
    config: TrainingConfig,
    progress: ProgressCallback | None = None,
    checkpoints: Checkpoints | None = None,
    previous: Release | None = None,
    catalogue: Catalogue | None = None,
) -> None:
    """What the other ranks do while the first one is in `train_release`, with the same arguments.

    They share the steps of training; the first alone evaluates and writes.
    """
    lesson = to_learn_from(clicks, config)
    items = lesson.item_ids
    fields = None if catalogue is None else catalogue.fields(items)
    before = None if previous is None else Previous.of(previous)
    succeeding_model(
        lesson.sequences, items, config, before, progress, fields=fields, checkpoints=checkpoints
    )


def to_learn_from(clicks: ClickLog | ClickStore, config: TrainingConfig) -> Lesson:
    """The clicks split by time, the items of the past, and its sequences.

    Raises:
        ClickLogError: there is nothing to learn from.
    """
    if isinstance(clicks, ClickStore):
        return clicks.lesson(config)
    past, future = hold_out(clicks, config.holdout)
    item_ids = vocabulary(past, config.min_item_clicks)
    return Lesson(
        item_ids=item_ids,
        sequences=Sequences.from_log(past, item_ids),
        held_out=HeldOut.split(past, future, item_ids, config.window_length),
        since_ms=int(past.timestamps_ms.min()),
        until_ms=int(past.timestamps_ms.max()),
        clicks=len(past),
        users=len(past.user_ids),
    )


def hold_out(clicks: ClickLog, share: float) -> tuple[ClickLog, ClickLog]:
    """Split off the newest share of the clicks, by time; nothing if that would leave none.

    Raises:
        ClickLogError: the log is empty.
    """
    if not len(clicks):
        raise ClickLogError("the click log is empty; there is nothing to train on")
    newest = int(clicks.timestamps_ms.max())
    cut = clicks.cut_ms(1 - share) if share else newest + 1
    if cut == int(clicks.timestamps_ms.min()):
        cut = newest + 1
    return clicks.between(until_ms=cut), clicks.between(since_ms=cut)


def vocabulary(clicks: ClickLog, min_item_clicks: int) -> list[str]:
    """The ids of the items clicked often enough, sorted: rows 1..N of the item table."""
    counts = np.bincount(clicks.items, minlength=len(clicks.item_ids))
    return [item for item, n in zip(clicks.item_ids, counts, strict=True) if n >= min_item_clicks]


def recall_on(held_out: HeldOut, config: TrainingConfig) -> Callable[[Mind], float]:
    """Measures Recall@20 of the served form of a model while it is trained."""

    def recall(model: Mind) -> float:
        table = item_vectors(model)
        found = evaluate(
            lambda windows: encode_windows(model, table, windows, config), table, held_out
        )
        model.train()
        return found["recall_at_20"]

    return recall


def measure(
    model: Mind, sequences: Learnable, held_out: HeldOut, config: TrainingConfig
) -> dict[str, float]:
    """Measures of the served form of a model and of popularity; see `train_release`."""
    metrics = {"evaluated_users": float(len(held_out))}
    if not len(held_out):
        return metrics
    table = item_vectors(model)
    metrics |= evaluate(
        lambda windows: encode_windows(model, table, windows, config), table, held_out
    )
    popularity = evaluate_popularity(item_counts(sequences, len(table) - 1), held_out)
    return metrics | {f"popularity_{name}": value for name, value in popularity.items()}
