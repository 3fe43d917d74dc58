"""Progress wherever one waits: a bar or a spinner on a terminal, a line a step elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Waiting:
    """Shows one step at a time, keeping finished ones with their time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, doing: str, *, total: float | None = None) -> None:
        """Begin a step, ending the one before."""
        self._finish()
        if not self._console.is_terminal:
            self._console.print(doing, highlight=False)
        self._progress.start()
        self._task = self._progress.add_task(doing, total=total, note="")

    def show(self, doing: str, done: float, total: float) -> None:
        """Say what the step is at, and how far."""
        self.describe(doing)
        self.advance_to(done, total)

    def describe(self, doing: str) -> None:
        """Say what the step is at."""
        if self._task is not None:
            self._progress.update(self._task, note=doing)

    def tell(self, what: str) -> None:
        """Leave a line about something that happened meanwhile."""
        self._console.print(what, highlight=False, markup=False)

    @property
    def animated(self) -> bool:
        """Whether there is a terminal, where what is shown changes in place."""
        return self._console.is_terminal

    def advance_to(self, done: float, total: float | None = None) -> None:
        """Say how far the step is."""
        if self._task is not None:
            if total is not None:
                self._progress.update(self._task, total=total)
            self._progress.update(self._task, completed=done)

    def stop(self) -> None:
        """End the last step, and leave the terminal to others."""
        self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._progress.task_ids.index(self._task)]
            total = task.total or 1
            self._progress.update(self._task, total=total, completed=total, note="")
            self._task = None
