"""`mindstream demo`: the whole product on one machine, on real clicks, from nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live

from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from encoder.settings import Settings
from lookup import Lookup
from mindstream.audit import Audit, audit_store
from mindstream.demo_data import demo_clicks, demo_file
from mindstream.demo_screen import Followed, Screen, percentiles_ms
from mindstream.demo_services import claim_folder, demo_services
from mindstream.environment import environment_of
from mindstream.group import wait_until_consumed
from mindstream.progress import Waiting
from mindstream.recall import prequential_recall
from mindstream.replay import FreshnessProbe, replay
from mindstream.training_run import put_into_use, train
from mindstream.worker_process import WorkerProcess

TRAINED_SHARE: Final = 0.8
PARTITIONS: Final = 4
_READY_S: Final = 120.0
_STALLED_S: Final = 60.0
_REFRESH_S: Final = 0.25
_FIRST_POLL_S: Final = 0.05
_NEAR: Final = 3
_RECALL_N: Final = 50


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration measured.

    Attributes:
        clicks: replayed.
        users: that have interests in the end.
        rows: of interests in the end, as a plain fold over the topic expects them.
        rejected: records on the topic that the click contract rejects.
        clicks_per_s: replayed clicks over the time from the first being produced to the last being
            committed.
        freshness_p50_ms: from a click's production to its user's rows being readable by key.
        freshness_p99_ms: likewise.
        freshness_samples: clicks that were followed.
        recall_at_50: share of replayed clicks among the 50 items nearest to the user's interests
            just before the click.
        history_clicks: clicks from before the replay, consumed as a backlog.
        history_clicks_per_s: how fast.
        train_s: training, evaluation and export.
        first_interest_s: from the start of the command to the first interests being readable.
        differences: rows that differ from a plain fold over the topic.
    """

    clicks: int
    users: int
    rows: int
    rejected: int
    clicks_per_s: float
    freshness_p50_ms: float | None
    freshness_p99_ms: float | None
    freshness_samples: int
    recall_at_50: float
    history_clicks: int
    history_clicks_per_s: float
    train_s: float
    first_interest_s: float
    differences: int

    def as_json(self) -> dict[str, object]:
        """Rounded to what the measurement can bear."""
        return {
            name: round(value, 4 if name.startswith("recall") else 1)
            if isinstance(value, float)
            else value
            for name, value in asdict(self).items()
        }


def run_demo(
    *,
    folder: Path,
    clicks_per_s: float,
    replay_clicks: int | None,
    stay: bool,
    console: Console,
) -> DemoResult:
    """Start everything, train, replay, measure and check.

    Args:
        folder: for data, the release and logs. A demonstration's own is emptied first; any other
            must be empty.
        clicks_per_s: speed of the replay; 0 is as fast as can be.
        replay_clicks: replay only the first so many of the newest part; all of it if None.
        stay: keep everything running after the replay until interrupted.
        console: where to show progress.

    Returns:
        What was measured. `differences` is 0 unless something is wrong.
    """
    started = time.perf_counter()
    claim = claim_folder(folder)
    clicks = demo_clicks(demo_file())
    cut = int(len(clicks) * TRAINED_SHARE)
    history, live = clicks[:cut], clicks[cut:]
    live = live[:replay_clicks]
    with ExitStack() as stack:
        stack.callback(claim.release)
        waiting = stack.enter_context(Waiting(console))
        settings = stack.enter_context(demo_services(folder, PARTITIONS, waiting))
        training_started = time.perf_counter()
        release = _train(folder, settings, clicks[cut].timestamp_ms, waiting)
        train_s = time.perf_counter() - training_started
        worker = WorkerProcess(settings, folder / "worker.log")
        stack.callback(worker.stop)
        waiting.start("starting the worker")
        worker.start(ready_within_s=_READY_S, notify=waiting.describe)
        lookup = stack.enter_context(Lookup(settings.milvus))
        backlog = _consume_history(settings, history, worker, lookup, waiting)
        waiting.stop()
        first_interest_s = backlog.first_readable_at - started
        screen = Screen(total=len(live))
        replayed_s = _replay_live(
            settings, release, history, live, clicks_per_s, worker, lookup, screen, console
        )
        waiting.start("checking every row against a plain fold of the topic")
        index = InterestIndex(settings.milvus)
        stack.callback(index.close)
        encoder = MindEncoder(release)
        audit = audit_store(settings, index, encoder, notify=waiting.describe)
        waiting.start("predicting every click from the interests just before it")
        recall = prequential_recall(
            encoder, history, live, length=settings.window_length, n=_RECALL_N
        )
        waiting.stop()
        p50, p99 = percentiles_ms(screen.freshness_s)
        result = DemoResult(
            clicks=screen.produced,
            users=audit.users_with_rows,
            rows=audit.rows,
            rejected=len(audit.rejected),
            clicks_per_s=screen.produced / replayed_s,
            freshness_p50_ms=p50,
            freshness_p99_ms=p99,
            freshness_samples=len(screen.freshness_s),
            recall_at_50=recall,
            history_clicks=len(history),
            history_clicks_per_s=len(history) / backlog.seconds,
            train_s=train_s,
            first_interest_s=first_interest_s,
            differences=audit.differences,
        )
        _tell(console, audit, result)
        if stay:
            _stay(console, settings, live[-1].user_id)
    return result


def _train(folder: Path, settings: Settings, until_ms: int, waiting: Waiting) -> Release:
    from training.click_log import ClickLog

    log = ClickLog.from_parquet(demo_file(), until_ms=until_ms)
    release = train(log, settings, folder / "work", waiting)
    put_into_use(release, settings, waiting)
    return release


@dataclass(frozen=True, slots=True)
class _Backlog:
    seconds: float
    first_readable_at: float


def _consume_history(
    settings: Settings,
    history: Sequence[Click],
    worker: WorkerProcess,
    lookup: Lookup,
    waiting: Waiting,
) -> _Backlog:
    """Produce what the release was trained on, so that windows start where training ended."""
    waiting.start("replaying the history as a backlog", total=2 * len(history))
    began = time.perf_counter()
    first_user = history[0].user_id
    readable_at: list[float] = []
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            while not readable_at and not finished.is_set():
                if lookup.interests(first_user).interests:
                    readable_at.append(time.perf_counter())
                time.sleep(_FIRST_POLL_S)
        except BaseException as exc:
            failed.append(exc)

    def progress(lag: int) -> None:
        worker.check()
        waiting.advance_to(2 * len(history) - min(lag, len(history)))

    finished = threading.Event()
    watcher = threading.Thread(target=watch, name="first-interest", daemon=True)
    watcher.start()
    try:
        replay(settings, history, clicks_per_s=0, progress=waiting.advance_to)
        wait_until_consumed(
            settings,
            PARTITIONS,
            stalled_after_s=_STALLED_S,
            progress=progress,
        )
    finally:
        finished.set()
        watcher.join()
    if failed:
        raise failed[0]
    ended = time.perf_counter()
    return _Backlog(ended - began, readable_at[0] if readable_at else ended)


def _replay_live(
    settings: Settings,
    release: Release,
    history: Sequence[Click],
    live: Sequence[Click],
    clicks_per_s: float,
    worker: WorkerProcess,
    lookup: Lookup,
    screen: Screen,
    console: Console,
) -> float:
    """Replay, showing what happens; returns the seconds until all was committed."""
    probe = FreshnessProbe(lookup, release.row_of)
    probe.start(history)
    screen.freshness_s = probe.seconds
    screen.followed = Followed(_busiest_user(live))
    followed = screen.followed
    followed.first = lookup.interests(followed.user_id).interests
    finished = threading.Event()
    failed: list[BaseException] = []
    ended: list[float] = []

    def produced(click: Click, at: float) -> None:
        probe.produced(click, at)
        if click.user_id == followed.user_id:
            followed.clicks += 1
            followed.last_items = [*followed.last_items[-2:], click.item_id]

    def progress(done: int) -> None:
        screen.produced = done

    def produce() -> None:
        try:
            replay(
                settings, live, clicks_per_s=clicks_per_s, produced=produced, progress=progress,
                stop=finished,
            )  # fmt: skip
            wait_until_consumed(settings, PARTITIONS, stalled_after_s=_STALLED_S)
            ended.append(time.perf_counter())
            probe.finish()
        except BaseException as exc:
            failed.append(exc)

    began = time.perf_counter()
    producer = threading.Thread(target=produce, name="replay", daemon=True)
    producer.start()
    try:
        with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as view:
            rates = _Rates(worker.metrics())
            while producer.is_alive():
                producer.join(_REFRESH_S)
                worker.check()
                if console.is_terminal:
                    _refresh(screen, rates, worker, lookup)
                    view.update(screen.render())
    finally:
        finished.set()
    if failed:
        raise failed[0]
    return ended[0] - began


class _Rates:
    """Turns the worker's counters into rates over about a second."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self._last, self._at = metrics, time.perf_counter()

    def per_s(self, metrics: dict[str, float]) -> tuple[float, float] | None:
        now = time.perf_counter()
        if now - self._at < 1.0 or not metrics:
            return None
        clicks, users = (
            (metrics.get(name, 0.0) - self._last.get(name, 0.0)) / (now - self._at)
            for name in ("mindstream_clicks_total", "mindstream_users_total")
        )
        self._last, self._at = metrics, now
        return clicks, users


def _refresh(screen: Screen, rates: _Rates, worker: WorkerProcess, lookup: Lookup) -> None:
    metrics = worker.metrics()
    if (measured := rates.per_s(metrics)) is not None:
        screen.clicks_per_s, screen.users_per_s = measured
        if (followed := screen.followed) is not None:
            found = lookup.interests(followed.user_id)
            followed.now, followed.near = found.interests, lookup.nearest_items(found, limit=_NEAR)
    screen.lag = int(metrics.get("mindstream_lag_clicks", 0))


def _busiest_user(clicks: Sequence[Click]) -> str:
    """The user with the most distinct moments among the clicks: the one with most to show."""
    moments: dict[str, set[int]] = {}
    for click in clicks:
        moments.setdefault(click.user_id, set()).add(click.timestamp_ms)
    return max(moments, key=lambda user_id: (len(moments[user_id]), user_id))


def _tell(console: Console, audit: Audit, result: DemoResult) -> None:
    style = "bold red" if audit.differences else "bold green"
    console.print(f"store against a plain fold of the topic: {audit.report()}", style=style)
    for name, value in result.as_json().items():
        console.print(f"  {name:<22} {value}", highlight=False)


def _stay(console: Console, settings: Settings, user_id: str) -> None:
    console.print("\nEverything keeps running. In another terminal:\n", style="bold")
    for name, value in environment_of(settings).items():
        if os.environ.get(name) != value:  # what is set already may be a secret
            console.print(f"  export {name}={value}", highlight=False, soft_wrap=True)
    console.print(f"  .venv/bin/mindstream lookup {user_id}\n", highlight=False)
    console.print("Ctrl-C ends it.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping")
