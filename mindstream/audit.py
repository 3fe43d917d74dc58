"""Checks windows, rows and dead letters against a plain fold over the clicks topic.

The fold knows nothing of batches, offsets or crashes: it reads every click, forms each user's
window by its definition, and expects exactly these windows on the windows topic, exactly their rows
in the store, and one dead letter for every rejected record.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from encoder.announced_items import AnnouncedItems
from encoder.click import Click, Erasure
from encoder.click_history import RejectedRecord, read_click_topic
from encoder.dead_letter_topic import DeadLetter, put_back_offsets, read_dead_letters
from encoder.interest_index import Interest, InterestIndex
from encoder.interests import ClickColumns, InterestRows, compute_interests, interest_key
from encoder.item_record import ItemRecord
from encoder.item_topic import ItemFollower
from encoder.mind_encoder import MindEncoder
from encoder.settings import Settings
from encoder.topics import check_topics
from encoder.window import NEVER, Window, window_of
from encoder.windows_topic import read_windows

_ENCODE_USERS: Final = 2048
_EXAMPLES: Final = 5
_KEEP_WINDOWS: Final = 8


@dataclass(slots=True)
class Audit:
    """What the comparison found.

    Attributes:
        clicks: valid clicks on the topic.
        rejected: records the contract rejects.
        users: users with a window.
        users_with_rows: those with a click on a known item.
        rows: rows expected.
        lost_clicks: clicks that a window should hold and does not.
        wrong_windows: users whose window differs.
        missing: keys expected but not stored.
        unexpected: keys stored but not expected.
        different: keys whose row differs in any field or any bit of its vector.
        unset_aside: rejected records without a dead letter, as partition@offset.
        set_aside_again: dead letters beyond the one that each rejected record has.
        wrong_items: items that are retrieved and should not be, or not and should, or otherwise.
    """

    clicks: int = 0
    rejected: set[tuple[int, int]] = field(default_factory=set)
    users: int = 0
    users_with_rows: int = 0
    rows: int = 0
    lost_clicks: int = 0
    wrong_windows: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unset_aside: list[str] = field(default_factory=list)
    set_aside_again: list[str] = field(default_factory=list)
    wrong_items: list[str] = field(default_factory=list)

    @property
    def wrong_rows(self) -> int:
        """Rows that are not as they should be."""
        return len(self.missing) + len(self.unexpected) + len(self.different)

    @property
    def differences(self) -> int:
        """All that is not as it should be."""
        letters = len(self.unset_aside) + len(self.set_aside_again)
        return len(self.wrong_windows) + self.wrong_rows + letters + len(self.wrong_items)

    def report(self) -> str:
        """One line, with examples of what is wrong."""
        lines = [
            f"{self.clicks} clicks, {len(self.rejected)} rejected, {self.users} users,"
            f" {self.rows} rows, {self.differences} differences"
        ]
        for name in (
            "wrong_windows",
            "missing",
            "unexpected",
            "different",
            "unset_aside",
            "set_aside_again",
            "wrong_items",
        ):
            found: list[str] = getattr(self, name)
            if found:
                examples = ", ".join(sorted(found)[:_EXAMPLES])
                lines.append(f"{name.replace('_', ' ')}: {len(found)}, such as {examples}")
        return "; ".join(lines)


def fold(settings: Settings, audit: Audit) -> dict[str, Window]:
    """Every user's window, from the set of that user's clicks on the topic.

    Args:
        settings: where the topic is, the window's length, how far ahead clicks may lie.
        audit: its clicks and rejected records are set.
    """
    clicks: dict[str, set[tuple[int, str]]] = {}
    erased_at_ms: dict[str, int] = {}
    for events in read_click_topic(settings):
        for event in events:
            if isinstance(event, Click):
                audit.clicks += 1
                of_user = clicks.setdefault(event.user_id, set())
                of_user.add((event.timestamp_ms, event.item_id))
                if len(of_user) > _KEEP_WINDOWS * settings.window_length:
                    # Older ones can no longer be among the newest, whatever else comes.
                    clicks[event.user_id] = set(
                        window_of(of_user, length=settings.window_length).clicks
                    )
            elif isinstance(event, Erasure):
                known = erased_at_ms.get(event.user_id, NEVER)
                erased_at_ms[event.user_id] = max(known, event.up_to_ms)
            elif isinstance(event, RejectedRecord):
                audit.rejected.add((event.partition, event.offset))
    return {
        user_id: window_of(
            clicks.get(user_id, ()),
            length=settings.window_length,
            erased_at_ms=erased_at_ms.get(user_id, NEVER),
        )
        for user_id in clicks.keys() | erased_at_ms.keys()
    }


class _Rows(Protocol):
    def rows(self, item_ids: Iterable[str]) -> NDArray[np.int32]: ...


def columns_of(items: _Rows, windows: Iterable[Window]) -> ClickColumns:
    """Windows as the encoder's columns, by what knows which item has which row."""
    windows = list(windows)
    clicks = [click for window in windows for click in window.clicks]
    return ClickColumns(
        timestamps_ms=np.array([timestamp for timestamp, _ in clicks], np.int64),
        rows=items.rows(item for _, item in clicks),
        counts=np.array([len(window.clicks) for window in windows], np.int64),
    )


def encode_windows(encoder: MindEncoder, windows: dict[str, Window]) -> Iterator[InterestRows]:
    """The rows of users' interests, some users at a time."""
    users = iter(windows.items())
    while chunk := list(islice(users, _ENCODE_USERS)):
        user_ids, of_chunk = zip(*chunk, strict=True)
        rows, _ = compute_interests(encoder, user_ids, columns_of(encoder, of_chunk))
        yield rows


def audit_store(
    settings: Settings,
    index: InterestIndex,
    encoder: MindEncoder,
    *,
    notify: Callable[[str], None] = lambda doing: None,
) -> Audit:
    """Compare windows, dead letters and every row of a release's interests with the fold.

    The topic must hold every click since the first, be consumed to its end, and take no click
    meanwhile. Where an item is announced meanwhile, all is compared once more if anything differs.

    Args:
        settings: where everything is.
        index: the store.
        encoder: of the release; what the items topic says is put into it.
        notify: is told what is being done.
    """
    notify("reading every item")
    items = AnnouncedItems()
    follower = ItemFollower(settings.kafka, items)
    try:
        follower.poll()
        found = _audit(settings, index, encoder, items, notify)
        before = items.offsets
        follower.poll()
        if not found.differences or items.offsets == before:
            return found
        return _audit(settings, index, encoder, items, notify)
    finally:
        follower.close()


def _audit(
    settings: Settings,
    index: InterestIndex,
    encoder: MindEncoder,
    items: AnnouncedItems,
    notify: Callable[[str], None],
) -> Audit:
    audit = Audit()
    release = encoder.release
    said = items.since({})
    for record in said:
        encoder.further.put(record.item_id, record.fields())
    audit.wrong_items = _wrong_items(index, encoder, said)
    notify("reading every click")
    windows = fold(settings, audit)
    audit.users = len(windows)
    notify("reading every window and dead letter")
    _compare_windows(settings, windows, audit)
    _compare_dead_letters(settings, audit)
    notify("reading every row")
    stored = {interest_key(row.user_id, row.slot): row for row in index.all_interests(release.name)}
    notify("encoding every window")
    for expected in encode_windows(encoder, windows):
        audit.rows += len(expected)
        audit.users_with_rows += len(set(expected.user_ids))
        for number, key in enumerate(expected.keys):
            row = stored.pop(key, None)
            if row is None:
                audit.missing.append(key)
            elif not same_row(row, expected, number):
                audit.different.append(key)
    audit.unexpected.extend(stored)
    return audit


def _wrong_items(
    index: InterestIndex, encoder: MindEncoder, said: Iterable[ItemRecord]
) -> list[str]:
    """Items that the store retrieves otherwise than the items topic and the release have it."""
    release, further = encoder.release, encoder.further
    withdrawn = {record.item_id for record in said if record.withdrawn}
    expected = (release.row_of.keys() | set(further)) - withdrawn
    wrong: list[str] = []
    for item_id, vector in index.all_items(release.name):
        known = further.vector(item_id) if item_id in expected else None
        if known is None or known.tobytes() != vector.tobytes():
            wrong.append(item_id)
        expected.discard(item_id)
    return wrong + sorted(expected)


def _compare_windows(settings: Settings, expected: dict[str, Window], audit: Audit) -> None:
    # A mark this old may have been dropped.
    kept_since_ms = int((time.time() - settings.worker.erasure_retention_s) * 1000)
    stored = _stored_windows(settings)
    for user_id in expected.keys() | stored.keys():
        window, found = expected.get(user_id, Window()), stored.get(user_id, Window())
        audit.lost_clicks += len(set(window.clicks) - set(found.clicks))
        dropped = found.erased_at_ms == NEVER and window.erased_at_ms < kept_since_ms
        if found.clicks != window.clicks or not (
            dropped or found.erased_at_ms == window.erased_at_ms
        ):
            audit.wrong_windows.append(user_id)


def _stored_windows(settings: Settings) -> dict[str, Window]:
    partitions = range(check_topics(settings.kafka))
    stall_s = settings.worker.open_transaction_s
    stored: dict[str, Window] = {}
    for _, user_id, window in read_windows(settings.kafka, partitions, timeout_s=stall_s):
        stored[user_id] = window or Window()
    return stored


def _compare_dead_letters(settings: Settings, audit: Audit) -> None:
    receipts = put_back_offsets(settings.kafka)
    letters: Counter[tuple[int, int]] = Counter()
    mended: set[tuple[int, int]] = set()  # put back, maybe because the contract accepts them now
    for at, letter in read_dead_letters(settings.kafka):
        if isinstance(letter, DeadLetter) and letter.topic == settings.kafka.clicks_topic:
            letters[letter.partition, letter.offset] += 1
            if at in receipts:
                mended.add((letter.partition, letter.offset))
    expected = audit.rejected | mended
    for (partition, offset), count in letters.items():
        again = count - ((partition, offset) in expected)
        audit.set_aside_again += [f"{partition}@{offset}"] * again
    audit.unset_aside += [f"{p}@{o}" for p, o in audit.rejected - letters.keys()]


def same_row(row: Interest, expected: InterestRows, number: int) -> bool:
    """Whether a stored row is the expected one of this number, to the bit."""
    return (
        row.exemplar == expected.exemplars[number]
        and row.updated_at == int(expected.updated_at[number])
        and np.float32(row.weight) == expected.weights[number]
        and row.vector.tobytes() == expected.vectors[number].tobytes()
        and row.recent == (expected.recent[number] if expected.recent else "")
    )
