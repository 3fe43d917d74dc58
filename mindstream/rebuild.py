"""Rebuilds the windows topic from the clicks, and from whatever windows it still holds.

Windows are a function of the set of clicks, so the two are merged and nothing intact is lost:
windows may reach further back than the clicks. The order of the steps makes a kill at any point
harmless. While the group's offsets carry the mark of a rebuild no worker serves, and the merged
windows are in the log before anything is taken from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Literal

from kafka import TopicPartition

from consumers.batch import decide
from consumers.packed_window import EMPTY, pack
from consumers.window_store import WindowStore
from encoder.interest_index import InterestIndex
from encoder.kafka_client import read_to_end, reader, translated
from encoder.release_topic import read_releases, take_back
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.window import CorruptWindow
from encoder.windows_topic import REBUILDING, parse_window_record, read_extents
from mindstream.group import committed_offsets, refuse_members, set_offsets
from mindstream.windows_log import rewriting

Step = Literal["marked", "appended", "discarded", "withdrawn", "cleaned"]

_USERS_AT_ONCE: Final = 1000
_EXAMPLES: Final = 5


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild found, and did unless it was a dry run.

    Attributes:
        kept: users with a window that could be read from the windows topic.
        corrupt: (partition, offset) of every record that is no window.
        users: users with a window now.
        clicks: clicks and erasures read.
        rejected: records that the contract rejects.
        oldest_ms: when the oldest record of the clicks was produced; None without any.
        cut_short: partition → offset of its first click, where earlier ones are gone.
        users_deleted: users without a window, whose rows were deleted.
    """

    dry_run: bool
    kept: int = 0
    corrupt: list[tuple[int, int]] = field(default_factory=list)
    users: int = 0
    clicks: int = 0
    rejected: int = 0
    oldest_ms: int | None = None
    cut_short: dict[int, int] = field(default_factory=dict)
    users_deleted: int = 0

    def report(self) -> str:
        """A few lines for whoever called."""
        corrupt = f"{len(self.corrupt)} corrupt records"
        if self.corrupt:
            some = [f"[{partition}] at {offset}" for partition, offset in self.corrupt[:_EXAMPLES]]
            corrupt += f" (such as {', '.join(some)})"
        clicks = f"{self.clicks} clicks, {self.rejected} rejected"
        if self.oldest_ms is not None:
            oldest = datetime.fromtimestamp(self.oldest_ms / 1000, UTC)
            clicks += f", the oldest produced at {oldest:%Y-%m-%d %H:%M:%S} UTC"
        lines = [
            f"windows: {self.kept} users kept, {corrupt}",
            f"clicks: {clicks}",
            f"rebuilt: {self.users} users; rows deleted of {self.users_deleted} users that have no"
            " window",
        ]
        if self.cut_short:
            some = [f"[{partition}] at {begin}" for partition, begin in self.cut_short.items()]
            lines.append(
                f"warning: the clicks no longer begin at their first offset, but"
                f" {', '.join(some[:_EXAMPLES])}; windows that were lost and reached further back"
                " are shorter now"
            )
        if self.dry_run:
            lines.append("dry run: nothing was changed")
        return "\n".join(lines)


def rebuild_windows(
    settings: Settings,
    index: InterestIndex,
    *,
    dry_run: bool = False,
    notify: Callable[[str], None] = lambda doing: None,
    after_step: Callable[[Step], None] = lambda step: None,
) -> Rebuilt:
    """Make the windows topic, and what depends on it, whole again.

    Args:
        settings: of the workers.
        index: the store that they write to.
        dry_run: read everything and change nothing.
        notify: is told what is being done.
        after_step: called when a step is done; tests kill the process in it.

    Raises:
        Misconfigured: a worker is in the group, or a topic is missing.
        Unavailable: Kafka or the store does not answer. Run it again: no worker will serve before.
    """
    kafka = settings.kafka
    partitions = check_topics(kafka)
    refuse_members(settings)
    rebuilt = Rebuilt(dry_run)
    begins = _begins(settings, partitions)
    rebuilt.cut_short = {partition: begin for partition, begin in begins.items() if begin > 0}
    offsets = begins | committed_offsets(settings, partitions)
    users: set[str] = set()

    # 1. Mark the offsets. Only an empty group lets us, and a worker that comes later sees the mark.
    if not dry_run:
        set_offsets(settings, {one: (at, REBUILDING) for one, at in offsets.items()})
        after_step("marked")

    # 2. Merge, write the merged windows behind the old log, and only then discard the old log.
    with ExitStack() as stack:
        log = None if dry_run else stack.enter_context(rewriting(settings))
        for partition in range(partitions):
            notify(f"reading windows and clicks of partition {partition} of {partitions}")
            store = _merged(settings, partition, rebuilt)
            users.update(user_id for user_id, _ in store.users(partition))
            if log is not None:
                first = log.append(partition, store)
                after_step("appended")
                log.discard_before(partition, first)
                after_step("discarded")
    rebuilt.users = len(users)

    # 3. Let the next worker encode every window into the store, and delete what it cannot know of.
    releases = read_releases(kafka)
    if not dry_run:
        take_back(kafka, set(releases.filled))
        after_step("withdrawn")
    notify("looking for rows of users without a window")
    for announcement in releases.announced:
        if index.has_release(announcement.release):
            gone = _users_without_window(index, announcement.release, users)
            while some := list(islice(gone, _USERS_AT_ONCE)):
                rebuilt.users_deleted += len(some)
                if not dry_run:
                    budget_s = settings.worker.step_budget_s
                    index.forget(some, [announcement.release], budget_s=budget_s)
    after_step("cleaned")

    # 4. Replace the mark by what the topic holds now. The offsets stay where they were: the clicks
    # after them change no window any more, but rejected ones among them must be set aside.
    if not dry_run:
        extents = read_extents(kafka, range(partitions))
        set_offsets(
            settings, {one: (at, extents[one].to_metadata()) for one, at in offsets.items()}
        )
    return rebuilt


def _begins(settings: Settings, partitions: int) -> dict[int, int]:
    kafka = settings.kafka
    asked = [TopicPartition(kafka.clicks_topic, partition) for partition in range(partitions)]
    with translated("looking at the clicks", kafka), reader(kafka) as consumer:
        begins = consumer.beginning_offsets(asked)
    return {one.partition: begin for one, begin in begins.items()}


def _merged(settings: Settings, partition: int, rebuilt: Rebuilt) -> WindowStore:
    """All windows of one partition, from what both topics have of them."""
    kafka, length = settings.kafka, settings.window_length
    store = WindowStore()
    store.add_partition(partition)
    stall_s = settings.worker.open_transaction_s
    with translated("reading windows and clicks", kafka):
        windows = TopicPartition(kafka.windows_topic, partition)
        for records in read_to_end(kafka, [windows], timeout_s=stall_s):
            for record in records:
                try:
                    user_id, window = parse_window_record(record)
                except CorruptWindow:
                    rebuilt.corrupt.append((partition, record.offset))
                    continue
                packed = EMPTY if window is None else pack(window, store.codes)
                store.put(partition, {user_id: packed})
        rebuilt.kept += len(store)
        clicks = TopicPartition(kafka.clicks_topic, partition)
        for records in read_to_end(kafka, [clicks], timeout_s=stall_s):
            oldest_ms = min(record.timestamp for record in records)
            rebuilt.oldest_ms = min(oldest_ms, rebuilt.oldest_ms or oldest_ms)
            decision = decide(
                records,
                store,
                window_length=length,
                max_future_ms=int(settings.worker.max_future_s * 1000),
            )
            store.put(partition, decision.windows.get(partition, {}))
            rebuilt.clicks += decision.clicks + decision.erasures
            rebuilt.rejected += len(decision.rejected)
    return store


def _users_without_window(index: InterestIndex, release: str, users: set[str]) -> Iterator[str]:
    """Those with rows, each once or more."""
    last = None
    for user_id in index.users(release):
        if user_id != last and user_id not in users:
            yield user_id
        last = user_id
