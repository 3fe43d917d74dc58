"""Runs of the trainer one after the other, whatever became of the one before."""

import pytest

from encoder.errors import Misconfigured, Unavailable
from encoder.release import ReleaseUnavailableError
from mindstream.one_at_a_time import RunsAlready
from mindstream.schedule import AGAIN_AFTER_S, run_every
from mindstream.training_run import ReleaseRefused
from training.click_log import ClickLogError
from training.export import ExportError

HOUR_S = 3600.0


class Clock:
    """Seconds that pass when somebody waits or works."""

    def __init__(self, *outcomes: float | Exception) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self.told: list[str] = []
        self._outcomes = list(outcomes)

    def run(self) -> None:
        """Take 100 s and fail, or take as long as is said; the end of the story ends the test."""
        if not self._outcomes:
            raise KeyboardInterrupt
        outcome = self._outcomes.pop(0)
        self.now += outcome if isinstance(outcome, float) else 100.0
        if isinstance(outcome, Exception):
            raise outcome

    def wait(self, pause_s: float) -> None:
        self.waits.append(pause_s)
        self.now += pause_s

    def start(self, *, alone: bool = True) -> None:
        run_every(
            self.run,
            6 * HOUR_S,
            tell=self.told.append,
            alone=alone,
            clock=lambda: self.now,
            wait=self.wait,
        )


def test_runs_start_that_long_apart_whatever_they_take() -> None:
    """One that takes longer is followed at once; each time it is said when the next is due."""
    clock = Clock(HOUR_S, 7 * HOUR_S, 1.0)
    with pytest.raises(KeyboardInterrupt):
        clock.start()
    assert clock.waits == [5 * HOUR_S, 0, 6 * HOUR_S - 1]
    assert clock.told[0] == "the next run is due at 1970-01-01 06:00:00 UTC"
    assert len(clock.told) == 3


@pytest.mark.parametrize(
    ("error", "word", "pause_s"),
    [
        (ReleaseRefused("worse"), "refused: worse", 6 * HOUR_S - 100),
        (ClickLogError("no clicks"), "failed: no clicks", 6 * HOUR_S - 100),
        (ExportError("other numbers"), "failed: other numbers", 6 * HOUR_S - 100),
        (Unavailable("Kafka is away"), "failed: Kafka is away", AGAIN_AFTER_S),
        (ReleaseUnavailableError("no storage"), "failed: no storage", AGAIN_AFTER_S),
    ],
)
def test_it_goes_on_after_a_run_that_failed(error: Exception, word: str, pause_s: float) -> None:
    """Sooner if something did not answer."""
    clock = Clock(error, 5.0)
    with pytest.raises(KeyboardInterrupt):
        clock.start()
    assert clock.told[0] == word
    assert "the next run is due at" in clock.told[1]
    assert clock.waits[0] == pause_s
    assert len(clock.waits) == 2


@pytest.mark.parametrize("error", [RunsAlready("another"), Misconfigured("a setting")])
def test_it_ends_when_it_can_only_fail(error: Exception) -> None:
    """Another training runs, or something must be mended first."""
    clock = Clock(error)
    with pytest.raises(type(error)):
        clock.start()
    assert not clock.waits


def test_one_process_of_several_does_not_go_on_alone() -> None:
    """The others would wait for it at another place."""
    with pytest.raises(Unavailable):
        Clock(Unavailable("Kafka is away")).start(alone=False)
