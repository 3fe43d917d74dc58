"""A worker that meets its fate at a point: `python -m tests.faults.faulty_worker POINT NTH [stop]`.

Without arguments it is a worker like any other. It is killed at the point, or with `stop` stopped
by SIGSTOP; whoever started it may wake it. With `no-lease` it writes to the store at any time.
"""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

from kafka import KafkaProducer

from consumers import worker
from consumers.click_topic import ClickTopic
from consumers.takeover import Takeover
from consumers.update_loop import Step, UpdateLoop
from encoder.item_index import ItemIndex
from encoder.milvus_store import Lease, MilvusStore, for_ever
from mindstream import cli

STEPS: tuple[str, ...] = get_args(Step)
"""Between the steps of the loop."""

WITHIN_STEPS = (
    "leased",  # the lease was looked at, the write not yet sent
    "upserted",  # rows are written, stale ones not yet deleted
    "sent",  # windows are in the transaction, the offsets not yet
    "offsets",  # the offsets are in it, too, but it is not committed
    "restoring",  # some windows are read back
    "restored",
    "filled",  # a release's rows of one partition are written, but not reported
    "leaving",  # asked to stop, the last batch done, the group not yet left
)

ITEM_STEPS = (
    "item upserted",  # into what the store searches, and not yet told to readers in memory
    "item told",  # to those, too
    "users anew",  # some users are encoded anew and written, or a release's are
    "item report",  # all that is due is written, but not reported
    "item reported",
)

NO_LEASE = "no-lease"


class Fate:
    """What happens when a point is reached for the nth time."""

    def __init__(self, point: str, nth: int, number: signal.Signals) -> None:
        self._point, self._left, self._signal = point, nth, number

    def reach(self, point: str) -> None:
        """The process is at this point now."""
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                # To this thread, or else it would go on until another one has taken the signal.
                signal.pthread_kill(threading.get_ident(), self._signal)


def _with_points(fate: Fate) -> None:
    """Have the parts of a worker tell the fate where they are."""

    def around(owner: Any, name: str, before: str = "", after: str = "") -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            fate.reach(before)
            result = original(*args, **kwargs)
            fate.reach(after)
            return result

        setattr(owner, name, wrapped)

    around(MilvusStore, "upsert", after="upserted")
    around(KafkaProducer, "send_offsets_to_transaction", before="sent", after="offsets")
    around(Takeover, "_restore", after="restored")
    around(ItemIndex, "_create", before="item upserted")
    around(ItemIndex, "change", after="item told")
    around(UpdateLoop, "_report_items", before="item report", after="item reported")
    around(ClickTopic, "close", before="leaving")
    until_done = MilvusStore._until_done
    anew: list[Any] = []  # what is being written, where that is of no record

    def leased(
        store: MilvusStore,
        attempt: Callable[[float], None],
        doing: str,
        deadline: float,
        lease: Lease,
    ) -> None:
        def reached(timeout_s: float) -> None:
            if lease is not for_ever:  # collections are created without one
                fate.reach("leased")
                if doing.startswith("writing to items_"):
                    fate.reach("item leased")
                elif anew:
                    fate.reach("users leased")
            attempt(timeout_s)

        until_done(store, reached, doing, deadline, lease)

    MilvusStore._until_done = leased  # type: ignore[method-assign]
    restore = ClickTopic.restore

    def restoring(*args: Any) -> Iterator[Any]:
        for gathered in restore(*args):
            for part in gathered:
                for _ in part.user_ids:
                    fate.reach("restoring")
            yield gathered

    ClickTopic.restore = restoring  # type: ignore[method-assign]
    report_filled = ClickTopic.report_filled

    def filled(topic: ClickTopic, release: str, offsets: dict[int, int]) -> None:
        if offsets:
            fate.reach("filled")
        report_filled(topic, release, offsets)

    ClickTopic.report_filled = filled  # type: ignore[method-assign]
    commit: Callable[..., None] = ClickTopic.commit

    def committed(
        topic: ClickTopic,
        windows: Any,
        rejected: Any,
        next_offsets: Any,
        membership: Any,
        reports: Any = None,
    ) -> None:
        if any((reports or {}).values()):
            fate.reach("filled")
        commit(topic, windows, rejected, next_offsets, membership, reports)

    ClickTopic.commit = committed  # type: ignore[method-assign]
    write_batch: Callable[..., None] = UpdateLoop._write_batch

    def written(loop: UpdateLoop, batch: Any) -> None:
        if batch.encoded and not batch.records:
            anew.append(batch)
        write_batch(loop, batch)
        if anew:
            anew.clear()
            fate.reach("users anew")

    UpdateLoop._write_batch = written  # type: ignore[method-assign]


def main() -> None:
    point, nth = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else ("", 0)
    fate = Fate(point, nth, signal.SIGSTOP if "stop" in sys.argv[3:] else signal.SIGKILL)
    _with_points(fate)
    if NO_LEASE in sys.argv[3:]:
        ClickTopic._lease_left_s = lambda self, membership: math.inf  # type: ignore[method-assign]
    # The command itself, so that signals and exit codes are those of a worker.
    worker.run_worker = partial(worker.run_worker, after_step=fate.reach)  # type: ignore[assignment]
    sys.argv = ["mindstream", "worker"]
    cli.main()


if __name__ == "__main__":
    main()
