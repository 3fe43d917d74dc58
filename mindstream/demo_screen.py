"""What the demonstration shows on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lookup import Hit, Interest


@dataclass(slots=True)
class Followed:
    """The user whose interests are shown, and what they were at first."""

    user_id: str
    clicks: int = 0
    first: Sequence[Interest] = ()
    now: Sequence[Interest] = ()
    near: Sequence[Sequence[Hit]] = ()
    last_items: Sequence[str] = ()


@dataclass(slots=True)
class Screen:
    """Numbers of the running replay."""

    total: int
    produced: int = 0
    clicks_per_s: float = 0.0
    users_per_s: float = 0.0
    lag: int = 0
    freshness_s: list[float] = field(default_factory=list)
    followed: Followed | None = None

    def render(self) -> RenderableType:
        """The whole screen."""
        parts: list[RenderableType] = [self._numbers()]
        if self.followed and self.followed.now:
            parts.append(self._interests(self.followed))
        return Group(*parts)

    def _numbers(self) -> RenderableType:
        p50, p99 = percentiles_ms(self.freshness_s)
        table = Table.grid(padding=(0, 3))
        table.add_row("clicks/s", "users/s", "lag", "freshness p50", "freshness p99", style="dim")
        table.add_row(
            f"{self.clicks_per_s:,.0f}",
            f"{self.users_per_s:,.0f}",
            f"{self.lag:,}",
            f"{p50:.0f} ms" if p50 is not None else "-",
            f"{p99:.0f} ms" if p99 is not None else "-",
        )
        bar = ProgressBar(total=max(1, self.total), completed=self.produced, width=60)
        count = Text(f"{self.produced:,} of {self.total:,} clicks replayed", style="dim")
        return Panel(Group(table, bar, count), title="mindstream: clicks in, interests out")

    def _interests(self, followed: Followed) -> RenderableType:
        table = Table(expand=True)
        table.add_column("weight", justify="right", width=6)
        table.add_column("interest: the item that speaks most for it")
        table.add_column("at first")
        table.add_column("nearest items")
        first = {interest.slot: interest.exemplar for interest in followed.first}
        for interest, hits in zip(followed.now, followed.near, strict=True):
            before = first.get(interest.slot, "(new)")
            changed = before != interest.exemplar
            table.add_row(
                f"{interest.weight:.0%}",
                Text(interest.exemplar, style="bold green" if changed else ""),
                Text(before, style="dim"),
                Text(" · ".join(hit.id for hit in hits), style="cyan"),
            )
        latest = Text("latest: " + " · ".join(followed.last_items), style="dim")
        title = f"user {followed.user_id}: {followed.clicks} clicks replayed"
        return Panel(Group(table, latest), title=title)


def percentiles_ms(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    """The 50th and 99th percentile in milliseconds, None without a measurement."""
    if not seconds:
        return None, None
    p50, p99 = np.percentile(np.asarray(seconds), [50, 99]) * 1000.0
    return float(p50), float(p99)
