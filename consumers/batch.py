"""Decides what a batch of records does to windows. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from consumers.packed_window import merge_clicks
from consumers.window_store import WindowStore
from encoder.click import Click, RejectedClick, parse_record
from encoder.records import Record
from encoder.window import NEVER


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
        filled: release and partition of each whose interests are all in the release's collection
            then; of such a partition there is a next offset, too.
    """

    windows: dict[int, dict[str, bytes]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    next_offsets: dict[int, int] = field(default_factory=dict)
    clicks: int = 0
    erasures: int = 0
    erased_users: set[str] = field(default_factory=set)
    filled: list[tuple[str, int]] = field(default_factory=list)

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
        all_of_them.filled += one.filled
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
    clicks: dict[int, dict[str, list[tuple[int, str]]]] = {}  # by partition and user
    erased_at_ms: dict[tuple[int, str], int] = {}
    for record in records:
        partition = record.partition
        following = record.offset + 1
        if following > decision.next_offsets.get(partition, 0):
            decision.next_offsets[partition] = following
        try:
            event = parse_record(
                record.key, record.value, record.timestamp, max_future_ms=max_future_ms
            )
        except RejectedClick as exc:
            decision.rejected.append(Rejected(record, exc.reason, exc.detail))
            continue
        of_user = clicks.setdefault(partition, {}).setdefault(event.user_id, [])
        if isinstance(event, Click):
            of_user.append((event.timestamp_ms, event.item_id))
            decision.clicks += 1
        else:
            at = (partition, event.user_id)
            erased_at_ms[at] = max(erased_at_ms.get(at, NEVER), event.up_to_ms)
            decision.erasures += 1
            decision.erased_users.add(event.user_id)
    codes = store.codes
    for partition, users in clicks.items():
        changed: dict[str, bytes] = {}
        for user_id, of_user in users.items():
            before = store.packed(partition, user_id)
            erased = erased_at_ms.get((partition, user_id), NEVER) if erased_at_ms else NEVER
            after = merge_clicks(before, of_user, codes, length=window_length, erased_at_ms=erased)
            if after is not before:
                changed[user_id] = after
        if changed:
            decision.windows[partition] = changed
    return decision
