"""A model that goes on from the previous release, in the previous release's space.

N items, D vector width, K interests.
"""

import dataclasses
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from encoder.release import PARAMETERS_FILE, Release, ReleaseError
from training.alignment import mean_cosine, rotation, shared_rows, turn
from training.checkpoint import Checkpoints
from training.curve import Curve
from training.fit import ProgressCallback, build_model, fit
from training.inference import learned_vectors
from training.item_fields import ItemFields
from training.marks import colours_of, mark
from training.model import Mind
from training.preset import TrainingConfig
from training.recency import trained_model
from training.sequences import Learnable

# The table as it was trained: served vectors are smoothed already, and starting from those costs
# recall and moves items further (docs/model.md).
_KEPT: Final = ("table", "bilinear", "directions", "layers.")


@dataclass(frozen=True)
class Previous:
    """What a release leaves to the one after it.

    Attributes:
        name: of the release.
        preset: that it was trained with.
        fade: that it was trained with.
        item_ids: N ids, of rows 1..N.
        items: float32 (N+1, D), served vectors without their marks.
        parameters: by their names in `Mind`, the table's N+1 rows among them; empty if the release
            did not keep them.
        marks: how many colours its items have.
        colours: int64 (N+1,), which; -1 for none. None without marks.
    """

    name: str
    preset: str
    fade: float
    item_ids: Sequence[str]
    items: npt.NDArray[np.float32]
    parameters: dict[str, npt.NDArray[np.float32]]
    marks: int = 0
    colours: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, release: Release) -> "Previous":
        """What is in a release's folder.

        Raises:
            ReleaseError: its parameters are not an archive of plain arrays.
        """
        training = release.manifest.training
        marks = release.manifest.marks
        items = release.items[:, : release.items.shape[1] - marks]
        parameters = {}
        path = release.folder / PARAMETERS_FILE
        if PARAMETERS_FILE in release.manifest.files and path.exists():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    parameters = {name: archive[name] for name in archive.files}
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise ReleaseError(f"{path} is not an archive of plain arrays: {error}") from error
            needed = {"table", "bilinear", "directions"}
            if not needed <= parameters.keys() or parameters["table"].shape != items.shape:
                raise ReleaseError(
                    f"{path} must hold {', '.join(sorted(needed))}, the table like the items; "
                    "write the release again"
                )
        return cls(
            name=release.name,
            preset=training.preset,
            fade=float(training.hyper_parameters.get("fade", 0.0)),
            item_ids=release.item_ids,
            items=items,
            parameters=parameters,
            marks=marks,
            colours=colours_of(release.items[:, items.shape[1] :]) if marks else None,
        )


def parameters_of(model: Mind) -> dict[str, npt.NDArray[np.float32]]:
    """What a release keeps of a model for the next: table, S, directions and layers."""
    return {
        name: value.numpy().copy()
        for name, value in model.state_dict().items()
        if name.startswith(_KEPT)
    }


def packed(parameters: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """As an archive of arrays without pickle; the same arrays give the same bytes."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **parameters)
    return file.getvalue()


def obstacle(config: TrainingConfig, previous: Previous) -> str | None:
    """Why a model of this config cannot go on from a release; None if it can."""
    if not previous.parameters:
        return "it did not keep its parameters"
    layer = previous.parameters.get("layers.0.weight")
    for name, wanted, found in (
        ("preset", config.name, previous.preset),
        ("width", config.width, previous.parameters["bilinear"].shape[0]),
        ("number of interests", config.interests, previous.parameters["directions"].shape[1]),
        ("width of the ReLU layer", config.hidden, 0 if layer is None else len(layer)),
    ):
        if wanted != found:
            return f"its {name} is {found}, not {wanted}"
    return None


def warmed(config: TrainingConfig, previous: Previous) -> TrainingConfig:
    """The config to go on with: fade and marks without a trial, and `warm` of the examples.

    Interests whose clicks fade otherwise are other interests, so a fade is found out anew only by a
    cold start.
    """
    return dataclasses.replace(
        config,
        fade=previous.fade,
        fades=(),
        marks=previous.marks if config.trial_marks else 0,
        epochs=config.epochs * config.warm,
        examples=max(1, int(config.examples * config.warm)),
    )


def start(model: Mind, item_ids: Sequence[str], previous: Previous) -> None:
    """Give an untrained model what a release has learned.

    A known item starts from its vector there, a new one from the weighted mean of its neighbours';
    at random, if it has no neighbour that is known.

    Args:
        model: changed in place.
        item_ids: N ids, of rows 1..N of its table.
        previous: without an `obstacle`.
    """
    rows, before = shared_rows(item_ids, previous.item_ids)
    known = torch.zeros(len(item_ids) + 1, 1)
    known[rows] = 1
    table = torch.zeros_like(model.table)
    table[rows] = torch.from_numpy(previous.parameters["table"][before])
    if model.graph is not None:
        weights = model.graph.neighbours(known)  # (N+1, 1)
        near = (known == 0) & (weights > 0)
        means = model.graph.neighbours(table) / torch.where(weights > 0, weights, 1.0)
        table = torch.where(near, means, table)
        known = torch.where(near, 1.0, known)
    state = model.state_dict()
    state["table"] = torch.where(known > 0, table, state["table"])
    for name, value in previous.parameters.items():
        if name != "table":
            state[name] = torch.from_numpy(value)
    model.load_state_dict(state)


def warm_model(
    sequences: Learnable,
    item_ids: Sequence[str],
    config: TrainingConfig,
    previous: Previous,
    progress: ProgressCallback | None = None,
    *,
    fields: ItemFields | None = None,
    checkpoints: Checkpoints | None = None,
    curve: Curve | None = None,
) -> tuple[Mind, TrainingConfig]:
    """Train a model that starts from a release without an `obstacle`; see `succeeding_model`."""
    config = warmed(config, previous)
    # The release's table takes the place of eigenvectors, which lie in a space of their own.
    random = dataclasses.replace(config, spectral=False)
    model = build_model(sequences, len(item_ids), random, fields)
    start(model, item_ids, previous)
    # A training that started from another release is another training.
    checkpoint = checkpoints.of(f"training_from_{previous.name}") if checkpoints else None
    fit(model, sequences, config, progress, checkpoint=checkpoint, curve=curve)
    mark(model, sequences, config.marks, _kept_colours(item_ids, previous))
    return model, config


def _kept_colours(item_ids: Sequence[str], previous: Previous) -> npt.NDArray[np.int64] | None:
    if previous.colours is None:
        return None
    rows, before = shared_rows(item_ids, previous.item_ids)
    colours = np.full(len(item_ids) + 1, -1)
    colours[rows] = previous.colours[before]
    return colours


def align(model: Mind, item_ids: Sequence[str], previous: Previous) -> float:
    """Turn a model so that its items lie nearest to where they lay, and seed its slots as before.

    Nothing but the slots changes by it: training draws routing logits at random, so any directions
    may seed those that are served, and with the previous release's an interest keeps its slot.

    Args:
        model: trained; changed in place, unless its width is another.
        item_ids: N ids, of rows 1..N of its table.
        previous: the release to lie like.

    Returns:
        The mean cosine between an item's vector and its previous one; NaN if nothing is shared.
    """
    table = learned_vectors(model)
    if table.shape[1] != previous.items.shape[1]:
        return float("nan")
    rows, before = shared_rows(item_ids, previous.item_ids)
    turn(model, rotation(table[rows], previous.items[before]))
    directions = previous.parameters.get("directions")
    if directions is not None and directions.shape == tuple(model.directions.shape):
        model.directions.copy_(torch.from_numpy(directions))
    return mean_cosine(learned_vectors(model), previous.items, rows, before)


def succeeding_model(
    sequences: Learnable,
    item_ids: Sequence[str],
    config: TrainingConfig,
    previous: Previous | None,
    progress: ProgressCallback | None = None,
    notice: Callable[[str], None] = lambda _: None,
    *,
    fields: ItemFields | None = None,
    checkpoints: Checkpoints | None = None,
    curve: Curve | None = None,
) -> tuple[Mind, TrainingConfig, dict[str, float]]:
    """Train a model that succeeds a release: from where that stands if it can, and in its space.

    Args:
        sequences: rows 1..N.
        item_ids: N ids.
        config: how.
        previous: the release; None for a cold start in a space of its own.
        progress: told about every step.
        notice: told how it starts.
        fields: what is known of the items beside their clicks; their vectors start at random.
        checkpoints: of the training, which goes on from them.
        curve: gathers loss and recall of the training.

    Returns:
        The model; the config that it was trained with; and measures: `warm` is 1 if it went on from
        the release, and `item_cosine` is the mean cosine of the same item in both.
    """

    def anew() -> tuple[Mind, TrainingConfig]:
        return trained_model(
            sequences,
            len(item_ids),
            config,
            progress,
            fields,
            checkpoints=checkpoints,
            curve=curve,
        )

    if previous is None:
        model, config = anew()
        return model, config, {}
    reason = obstacle(config, previous)
    if reason is None:
        notice(f"starting from release {previous.name}")
        model, config = warm_model(
            sequences,
            item_ids,
            config,
            previous,
            progress,
            fields=fields,
            checkpoints=checkpoints,
            curve=curve,
        )
    else:
        notice(f"starting anew, not from release {previous.name}: {reason}")
        model, config = anew()
    found = {"warm": float(reason is None)}
    cosine = align(model, item_ids, previous)
    return model, config, found if np.isnan(cosine) else found | {"item_cosine": cosine}
