"""A small training to be killed or shared: `python -m tests.kept_training FOLDER`."""

import sys
from pathlib import Path

from tests.tastes import planted_log
from training import ranks
from training.checkpoint import Checkpoints
from training.curve import Curve, as_lines
from training.fit import ProgressCallback
from training.model import Mind
from training.preset import TrainingConfig
from training.recency import trained_model
from training.sequences import Sequences
from training.trainer import vocabulary

# Enough users for a trial of fades; a few seconds in all.
CONFIG = TrainingConfig(
    window_length=10,
    width=16,
    interests=3,
    epochs=0.3,
    trial=0.5,
    batch_size=128,
    negatives=64,
    learning_rate=0.02,
)


def train(
    checkpoints: Checkpoints | None,
    *,
    config: TrainingConfig = CONFIG,
    users: int = 2500,
    progress: ProgressCallback | None = None,
) -> tuple[Mind, Curve]:
    """The same model each time."""
    log = planted_log(users=users, clicks=20)
    items = vocabulary(log, 1)
    curve = Curve()
    model, _ = trained_model(
        Sequences.from_log(log, items),
        len(items),
        config,
        progress,
        checkpoints=checkpoints,
        curve=curve,
    )
    return model, curve


def bits(model: Mind) -> bytes:
    """All that it consists of."""
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def main(folder: Path) -> None:
    """Train with a checkpoint after each step; say what came out."""
    with ranks.joined():
        model, curve = train(Checkpoints(folder, every_s=0))
        (folder / f"rank_{ranks.rank()}.bits").write_bytes(bits(model))
        if ranks.rank() == 0:
            (folder / "curve.jsonl").write_bytes(as_lines(curve.points))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
