"""Where a training was when it was killed, so that it can go on from there.

A checkpoint is a safetensors file: tensors and text, nothing that could run. It is written beside
its place and moved there, so that a kill leaves the one before or the new one.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder.errors import Misconfigured
from training.curve import Point
from training.item_fields import ItemFields
from training.preset import TrainingConfig
from training.sequences import Learnable

_FORMAT: Final = 1
_MODEL, _OPTIMISER, _NOISE = "model", "optimiser", "noise"


class CheckpointError(Misconfigured):
    """This checkpoint cannot be gone on from; the message names the file and says why."""


@dataclass(frozen=True)
class Purpose:
    """What a checkpoint is of; a training goes on only from one of the same.

    Attributes:
        clicks: sha256 of the sequences with their users' profiles, and of the items' fields.
        config: the fields of the config, as text. Not its threads: a training may go on with
            others, and then has other bits.
    """

    clicks: str
    config: dict[str, str]

    @classmethod
    def of(
        cls,
        sequences: Learnable,
        items: int,
        config: TrainingConfig,
        item_fields: ItemFields | None = None,
    ) -> "Purpose":
        """What a training is of."""
        digest = hashlib.sha256(f"{items} items, {len(sequences)} users".encode())
        for block in sequences.blocks():
            digest.update(block.starts.data)
            digest.update(block.rows.data)
        if sequences.profiles is not None:
            digest.update(np.ascontiguousarray(sequences.profiles).data)
        if item_fields is not None:
            digest.update(repr(item_fields.fields).encode())
            for column in (item_fields.rows, item_fields.columns, item_fields.shares):
                digest.update(column.data)
        fields = {name: repr(value) for name, value in dataclasses.asdict(config).items()}
        del fields["threads"]
        return cls(digest.hexdigest(), fields)

    def difference(self, other: "Purpose") -> str:
        """In what this one differs from another, in words; empty if in nothing."""
        parts = ["other clicks"] if self.clicks != other.clicks else []
        names = sorted(self.config.keys() | other.config.keys())
        parts += [
            f"{name} {self.config.get(name)} instead of {other.config.get(name)}"
            for name in names
            if self.config.get(name) != other.config.get(name)
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class State:
    """Of a training after some steps.

    What else there is follows from the step: the learning rate, and the batches and negatives
    drawn, which are drawn again up to there.

    Attributes:
        step: steps done.
        smoothed: the smoothed loss.
        points: of the curve so far.
        model: its parameters and buffers, by name.
        optimiser: its tensors, by parameter's number and name.
        noise: state of the generator of routing noise and item dropout.
    """

    step: int
    smoothed: float
    points: list[Point]
    model: dict[str, Tensor]
    optimiser: dict[int, dict[str, Tensor]]
    noise: Tensor

    @classmethod
    def of(
        cls,
        step: int,
        smoothed: float,
        points: list[Point],
        model: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        noise: torch.Generator,
    ) -> "State":
        """A view of what is being trained; the next step changes it."""
        return cls(
            step,
            smoothed,
            points,
            model.state_dict(),
            optimiser.state_dict()["state"],
            noise.get_state(),
        )

    def restore(
        self, model: torch.nn.Module, optimiser: torch.optim.Optimizer, noise: torch.Generator
    ) -> None:
        """Make all three as they were."""
        model.load_state_dict(self.model)
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": self.optimiser, "param_groups": groups})
        noise.set_state(self.noise)


class Checkpoint:
    """One training's checkpoint.

    Args:
        path: the file.
        every_s: it is due so many seconds after it was last written.
        clock: seconds that only go up.
    """

    def __init__(
        self, path: Path, every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._every_s = every_s
        self._clock = clock
        self._written_s = clock()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self._clock() - self._written_s >= self._every_s

    def load(self, purpose: Purpose) -> State | None:
        """The state saved; None if there is none.

        Raises:
            CheckpointError: it is of other clicks or another config, or cannot be read.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about: dict[str, Any] = json.loads(metadata["training"])
            known = about["format"] == _FORMAT
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self._path} is no checkpoint: {error}") from error
        if not known:
            raise CheckpointError(f"{self._path} is of another version of this program")
        if difference := Purpose(about["clicks"], about["config"]).difference(purpose):
            raise CheckpointError(
                f"{self._path} is a checkpoint of another training ({difference}); move it away to"
                " train from the start"
            )
        model: dict[str, Tensor] = {}
        optimiser: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if part == _MODEL:
                model[rest] = tensor
            elif part == _OPTIMISER:
                number, _, key = rest.partition("/")
                optimiser.setdefault(int(number), {})[key] = tensor
        points = [Point(**point) for point in about["points"]]
        return State(about["step"], about["smoothed"], points, model, optimiser, tensors[_NOISE])

    def save(self, state: State, purpose: Purpose) -> None:
        """Write a state in the place of the one before."""
        about = {
            "format": _FORMAT,
            "step": state.step,
            "smoothed": state.smoothed,
            "points": [dataclasses.asdict(point) for point in state.points],
            **dataclasses.asdict(purpose),
        }
        tensors = {f"{_MODEL}/{name}": value for name, value in state.model.items()}
        for number, values in state.optimiser.items():
            tensors |= {f"{_OPTIMISER}/{number}/{key}": value for key, value in values.items()}
        tensors[_NOISE] = state.noise
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.draft")
        save_file(
            {name: value.detach().contiguous() for name, value in tensors.items()},
            draft,
            {"training": json.dumps(about)},
        )
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(self._path)
        self._written_s = self._clock()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of all trainings of one release, in a folder of their own.

    Attributes:
        folder: made when the first is written.
        every_s: seconds of training between two; how much a kill may cost.
    """

    folder: Path
    every_s: float = 60.0

    def of(self, training: str) -> Checkpoint:
        """The checkpoint of one of them; `training` is a plain file name."""
        return Checkpoint(self.folder / f"{training}.safetensors", self.every_s)
