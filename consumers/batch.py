"""Decides what a batch of records does to windows. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Final

from consumers.bulk_merge import UserEvents, merge_events
from consumers.window_store import WindowStore
from encoder.click import Click, RejectedClick, parse_record
from encoder.plain_clicks import TOGETHER, parse_plain
from encoder.records import Record

_PARTITION: Final = attrgetter("partition")
_OFFSET: Final = attrgetter("offset")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that can never be applied, and why."""

    record: Record
    reason: str
    detail: str


@dataclass(slots=True)
class Decision:
    """What a batch does.

    Attributes:
        windows: packed windows that changed, by partition and user.
        rejected: records to set aside.
        next_offsets: partition → next offset to read.
        clicks: records that were clicks, whether or not they changed a window.
        erasures: records that were tombstones.
        erased_users: whom they asked to forget.
        reports: by release and partition, whether all its interests are in the release's collection
            then, or are no longer kept up to date there; of such a partition there is a next
            offset, too.
    """

    windows: dict[int, dict[str, bytes]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    next_offsets: dict[int, int] = field(default_factory=dict)
    clicks: int = 0
    erasures: int = 0
    erased_users: set[str] = field(default_factory=set)
    reports: dict[tuple[str, int], bool] = field(default_factory=dict)

    @property
    def users(self) -> int:
        """Users whose window changed."""
        return sum(map(len, self.windows.values()))


def joined(decisions: Sequence[Decision]) -> Decision:
    """What batches that follow each other do, as if they had been one."""
    if len(decisions) == 1:
        return decisions[0]
    all_of_them = Decision()
    for one in decisions:
        for partition, windows in one.windows.items():
            all_of_them.windows.setdefault(partition, {}).update(windows)
        all_of_them.rejected += one.rejected
        all_of_them.next_offsets.update(one.next_offsets)
        all_of_them.clicks += one.clicks
        all_of_them.erasures += one.erasures
        all_of_them.erased_users |= one.erased_users
        all_of_them.reports.update(one.reports)
    return all_of_them


def decide(
    records: Iterable[Record], store: WindowStore, *, window_length: int, max_future_ms: int
) -> Decision:
    """Merge a batch into windows.

    The outcome depends only on the records and the windows before.

    Args:
        records: any number, of partitions that `store` holds.
        store: read, not changed.
        window_length: L.
        max_future_ms: see `encoder.click.parse_record`.
    """
    decision = Decision()
    events: dict[int, UserEvents] = {}
    for partition, grouped in groupby(records, key=_PARTITION):
        run = list(grouped)
        following = max(map(_OFFSET, run)) + 1
        decision.next_offsets[partition] = max(following, decision.next_offsets.get(partition, 0))
        of_partition = events.setdefault(partition, UserEvents())
        for start in range(0, len(run), TOGETHER):
            _gather(run[start : start + TOGETHER], of_partition, decision, max_future_ms)
    for partition, of_partition in events.items():
        packed = partial(store.packed, partition)
        changed = merge_events(packed, of_partition, store.codes, length=window_length)
        if changed:
            decision.windows[partition] = changed
    return decision


def _gather(
    records: Sequence[Record], events: UserEvents, decision: Decision, max_future_ms: int
) -> None:
    """Read records of one partition, all at once where that can be."""
    _, _, produced_ms, keys, values, _ = zip(*records, strict=True)
    plain = parse_plain(keys, values, [at_ms + max_future_ms for at_ms in produced_ms])
    if plain is not None:
        events.click_all(plain)
        decision.clicks += len(records)
        return
    for record in records:
        try:
            event = parse_record(
                record.key, record.value, record.timestamp, max_future_ms=max_future_ms
            )
        except RejectedClick as exc:
            decision.rejected.append(Rejected(record, exc.reason, exc.detail))
            continue
        if isinstance(event, Click):
            events.click(event.user_id, event.item_id, event.timestamp_ms)
            decision.clicks += 1
        else:
            events.erase(event.user_id, event.up_to_ms)
            decision.erasures += 1
            decision.erased_users.add(event.user_id)
