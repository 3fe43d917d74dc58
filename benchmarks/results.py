"""What a benchmark found, and how it is shown."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

_HEAD = f"  {'benchmark':<34}{'value':>12} {'unit':<14}{'floor':>12}{'ratio':>8}  goal"


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        value: what was measured.
        unit: of the value and of the floor.
        floor: the same measured in the same run without mindstream, where there is such a thing.
        goal: what is aimed at, in words.
        met: whether it was reached; None where nothing is aimed at.
        details: whatever explains the figure.
    """

    name: str
    value: float
    unit: str
    floor: float | None = None
    goal: str = ""
    met: bool | None = None
    details: dict[str, object] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """The value over the floor."""
        return None if self.floor is None else self.value / self.floor

    def line(self) -> str:
        """A row of the table."""
        floor = "" if self.floor is None else f"{self.floor:,.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        verdict = {None: "", True: "met", False: "NOT MET"}[self.met]
        return (
            f"  {self.name:<34}{self.value:>12,.5g} {self.unit:<14}{floor:>12}{ratio:>8}"
            f"  {self.goal} {verdict}".rstrip()
        )

    def as_json(self) -> str:
        """A line for machines."""
        fields = asdict(self) | {"ratio": self.ratio}
        details = fields.pop("details")
        return json.dumps({**fields, **details, "machine": machine()})


def at_least(
    name: str,
    value: float,
    unit: str,
    goal: float,
    *,
    floor: float | None = None,
    **details: object,
) -> Result:
    """A figure that is good when it, or its ratio to the floor, is large."""
    met = _compared(value, floor) >= goal
    return Result(name, value, unit, floor, _words("≥", goal, floor), met, details)


def at_most(
    name: str,
    value: float,
    unit: str,
    goal: float,
    *,
    floor: float | None = None,
    **details: object,
) -> Result:
    """A figure that is good when it, or its ratio to the floor, is small."""
    met = _compared(value, floor) <= goal
    return Result(name, value, unit, floor, _words("≤", goal, floor), met, details)


def _compared(value: float, floor: float | None) -> float:
    return float(value if floor is None else value / floor)


def _words(relation: str, goal: float, floor: float | None) -> str:
    return f"{relation} {goal:g}" + ("" if floor is None else " times the floor")


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles of durations, in ms."""
    found = np.percentile(np.asarray(seconds) * 1000, [50, 90, 99])
    return dict(zip(("p50_ms", "p90_ms", "p99_ms"), np.round(found, 2).tolist(), strict=True))


def machine() -> str:
    """What it ran on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def say(line: str) -> None:
    """Print at once: it takes long."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def head() -> None:
    """The table's head."""
    say(_HEAD)
