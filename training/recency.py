"""Whether the order of clicks counts, and whether users come back, found out on the clicks.

In some logs what was clicked last says most about what comes next; in others, such as baskets whose
items have no order, all of a window counts alike. Taking the one for the other costs a fifth of the
recall or more, and a decay that is learned by gradient does not find out (training/EXPERIMENTS.md).
Likewise, some users want again what they had, and others never do.
"""

import dataclasses
from typing import Final

import numpy as np

from training import ranks
from training.checkpoint import Checkpoint, Checkpoints
from training.curve import Curve
from training.evaluation import HeldOut, evaluate
from training.fit import Progress, ProgressCallback, build_model, fit
from training.inference import encode_windows, item_vectors
from training.item_fields import ItemFields
from training.marks import mark
from training.model import Mind
from training.preset import TrainingConfig
from training.sequences import Learnable, Sequences

FEWEST_USERS: Final = 200
_MOST_USERS: Final = 2_000
_SHARE: Final = 0.1
_HISTORY_SHARE: Final = 0.8
_MEASURES: Final = ("recall_at_20", "recall_at_50")
_WORTH: Final = 1.01  # times the recall without: marks make vectors half as long again


def trained_model(
    sequences: Learnable,
    items: int,
    config: TrainingConfig,
    progress: ProgressCallback | None = None,
    fields: ItemFields | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    curve: Curve | None = None,
) -> tuple[Mind, TrainingConfig]:
    """Train a model, after trying out `config.fades` if there are any.

    Args:
        sequences: rows 1..N.
        items: N.
        config: how.
        progress: told about every step.
        fields: what is known of the items beside their clicks.
        checkpoints: of the trials and of the training, which go on from them.
        curve: gathers loss and recall of the training.

    Returns:
        The model, and the config with the `fade` and the `marks` that it has.

    Raises:
        CheckpointError: a checkpoint is of another training.
    """
    config = chosen(sequences, items, config, progress, fields, checkpoints)
    model = build_model(sequences, items, config, fields)
    checkpoint = checkpoints.of("training") if checkpoints else None
    fit(model, sequences, config, progress, checkpoint=checkpoint, curve=curve)
    mark(model, sequences, config.marks)
    return model, config


def chosen(
    sequences: Learnable,
    items: int,
    config: TrainingConfig,
    progress: ProgressCallback | None = None,
    fields: ItemFields | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainingConfig:
    """The config with the fade that recommends best to users held out.

    Each is trained for `config.trial` of the examples on the other users. Of a user held out, the
    first 80 % of the clicks are the history and the rest the targets. With fewer than
    `FEWEST_USERS` of them, the config stays as it is. Of sequences that are larger than memory, all
    of this happens on a sample of the users.

    Where the order counts, the item table starts spectrally, see `TrainingConfig.spectral_epochs`:
    the graph links what is clicked close to each other, which says little where it does not. Marks
    are taken where the trial recommends better with them than without, which needs no training.
    """
    if not config.fades:
        return config
    learned, held_out = split_users(sequences.sample(), config.window_length, config.seed)
    if len(held_out) < FEWEST_USERS:
        return config
    trials = [
        dataclasses.replace(
            config,
            fade=fade,
            fades=(),
            epochs=config.epochs * config.trial,
            examples=max(1, int(config.examples * config.trial)),
        )
        for fade in config.fades
    ]
    scores: list[tuple[float, float]] = []
    for number, trial in enumerate(trials):
        if progress is not None:
            progress(Progress("choosing", number, len(trials)))
        checkpoint = checkpoints.of(f"trial_{number}") if checkpoints else None
        scores.append(_recalls(learned, items, trial, held_out, fields, checkpoint))
    plain, marked = max(scores)
    number = scores.index((plain, marked))
    marks = config.trial_marks if marked > plain * _WORTH else config.marks
    number, marks = ranks.as_the_first([number, marks])
    best = dataclasses.replace(config, fade=trials[number].fade, fades=(), marks=marks)
    if best.fade and config.spectral_epochs:
        return dataclasses.replace(
            best,
            spectral=True,
            epochs=config.spectral_epochs,
            graph_reach=config.spectral_reach,
        )
    return best


def _recalls(
    learned: Sequences,
    items: int,
    config: TrainingConfig,
    held_out: HeldOut,
    fields: ItemFields | None,
    checkpoint: Checkpoint | None,
) -> tuple[float, float]:
    """Without marks and with them; twice the same if there are to be none."""
    model = build_model(learned, items, config, fields)
    fit(model, learned, config, checkpoint=checkpoint)
    plain = _recall(model, config, held_out)
    if not config.trial_marks or not config.cosine:
        return plain, plain
    mark(model, learned, config.trial_marks)
    return plain, _recall(model, config, held_out)


def _recall(model: Mind, config: TrainingConfig, held_out: HeldOut) -> float:
    table = item_vectors(model)
    profiles = held_out.profiles
    found = evaluate(
        lambda rows: encode_windows(model, table, rows, config, profiles), table, held_out
    )
    return sum(found[name] for name in _MEASURES)


def split_users(sequences: Sequences, window_length: int, seed: int) -> tuple[Sequences, HeldOut]:
    """The sequences of most users, and the newest clicks of the others to find."""
    lengths = np.diff(sequences.starts)
    eligible = np.flatnonzero(lengths * (1 - _HISTORY_SHARE) >= 1)
    rng = np.random.default_rng([seed, 2])
    held = np.sort(rng.permutation(eligible)[: min(int(len(eligible) * _SHARE), _MOST_USERS)])
    begins, ends = sequences.starts[held], sequences.starts[held + 1]
    cuts = begins + ((ends - begins) * _HISTORY_SHARE).astype(np.int64)
    targets = [
        frozenset(sequences.rows[cut:end].tolist()) - {0}
        for cut, end in zip(cuts.tolist(), ends.tolist(), strict=True)
    ]
    windows = sequences.windows_before(cuts, window_length)
    real = np.array([bool(rows) for rows in targets], bool) & windows.any(axis=1)
    kept = np.ones(len(sequences.rows), bool)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        kept[begin:end] = False
    others = np.delete(lengths, held)
    starts = np.concatenate([[0], np.cumsum(others)]).astype(np.int64)
    profiles = sequences.profiles
    return (
        Sequences(
            sequences.rows[kept],
            starts,
            None if profiles is None else np.delete(profiles, held, axis=0),
        ),
        HeldOut(
            windows[real],
            [rows for rows, fine in zip(targets, real, strict=True) if fine],
            None if profiles is None else profiles[held[real]],
        ),
    )
