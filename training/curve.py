"""How loss and recall went over the steps of one training."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Final

from training.model import Mind

MEASURED_TIMES: Final = 20
"""Recall is measured so many times in a training: often enough to see it rise, or stop rising."""
_LOSSES: Final = 200


@dataclass(frozen=True)
class Point:
    """After a step.

    Attributes:
        step: steps done.
        loss: smoothed training loss.
        recall: Recall@20 on a sample of held-out clicks; None where it was not measured.
    """

    step: int
    loss: float
    recall: float | None = None


class Curve:
    """Gathers the points of a training.

    Args:
        recall: measures a model, and must leave it and everything random as it was; None if there
            is nothing to measure on.
    """

    def __init__(self, recall: Callable[[Mind], float] | None = None) -> None:
        self.points: list[Point] = []
        self._recall = recall
        self._newest: float | None = None

    @property
    def recall(self) -> float | None:
        """The newest measured."""
        return self._newest

    def resume(self, points: Iterable[Point]) -> None:
        """Go on from the points of a checkpoint."""
        self.points = list(points)
        measured = [point.recall for point in self.points if point.recall is not None]
        self._newest = measured[-1] if measured else None

    def add(self, step: int, steps: int, loss: float, model: Mind) -> None:
        """Note where a training is, if it is at a place where that is noted."""
        measures = self._recall is not None and _falls_on(step, steps, MEASURED_TIMES)
        if not measures and not _falls_on(step, steps, _LOSSES):
            return
        recall = self._recall(model) if measures and self._recall is not None else None
        self._newest = self._newest if recall is None else recall
        self.points.append(Point(step, loss, recall))


def _falls_on(step: int, steps: int, parts: int) -> bool:
    """Whether one of so many even parts of the steps ends with this step."""
    return step * parts // steps > (step - 1) * parts // steps


def as_lines(points: Iterable[Point]) -> bytes:
    """One JSON object per point and line."""
    return "".join(json.dumps(asdict(point)) + "\n" for point in points).encode()


def as_png(points: Iterable[Point]) -> bytes:
    """Loss and recall, each over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a while
    from matplotlib.figure import Figure

    points = list(points)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    left.set_xlabel("step")
    left.set_ylabel("training loss, smoothed", color="tab:blue")
    left.plot([p.step for p in points], [p.loss for p in points], color="tab:blue")
    measured = [(p.step, 100 * p.recall) for p in points if p.recall is not None]
    if measured:
        right = left.twinx()
        right.set_ylabel("Recall@20 on held-out clicks, %", color="tab:orange")
        right.plot(*zip(*measured, strict=True), color="tab:orange", marker=".")
        right.set_ylim(bottom=0)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
