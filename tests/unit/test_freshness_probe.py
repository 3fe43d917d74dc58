"""When the probe says that a click could be read."""

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from encoder.click import Click
from encoder.errors import Unavailable
from lookup import Lookup
from mindstream import replay
from mindstream.replay import FreshnessProbe

CLICK = Click("u", "item-1", 1000)


class Reads:
    """A store whose first read shows what was there when it began, and takes long."""

    def __init__(self) -> None:
        self.begun = 0
        self.second_is_done = threading.Event()

    def interests(self, user_id: str) -> Any:
        assert user_id == CLICK.user_id
        self.begun += 1
        if self.begun == 1:
            self.second_is_done.wait(60)
            return SimpleNamespace(interests=())
        self.second_is_done.set()
        return SimpleNamespace(interests=(SimpleNamespace(updated_at=CLICK.timestamp_ms),))


def test_a_read_that_began_too_early_is_not_waited_for() -> None:
    """The next one is begun meanwhile, and its end is what counts."""
    reads = Reads()
    probe = FreshnessProbe(cast(Lookup, reads), {"item-1"})
    probe.start([])
    probe.produced(CLICK, at=time.perf_counter())
    assert reads.second_is_done.wait(30), "the second read waits for the first"
    probe.finish()
    assert len(probe.seconds) == 1


def test_a_click_that_never_becomes_readable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a figure that is left out."""
    monkeypatch.setattr(replay, "_PROBE_TIMEOUT_S", 0.0)
    empty = SimpleNamespace(interests=lambda user_id: SimpleNamespace(interests=()))
    probe = FreshnessProbe(cast(Lookup, empty), {"item-1"})
    probe.start([])
    probe.produced(CLICK, at=time.perf_counter())
    with pytest.raises(Unavailable, match="not readable"):
        probe.finish()
    assert probe.seconds == []
