"""Proof that the interests of a release are those of the windows: a sample, bit for bit.

Clicks go on while it is taken. A worker writes rows before it commits their windows, so a user who
is being clicked may be ahead in the store for a moment; whoever differs is looked at again. Items
may be announced meanwhile, too: where a window holds one, everything is read and compared again.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from consumers.encoding import WindowEncoder
from consumers.packed_window import ItemCodes, unpack
from consumers.window_wire import from_wires
from encoder.announced_items import AnnouncedItems
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.item_topic import ItemFollower
from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from encoder.settings import Settings
from encoder.window import Window
from encoder.windows_topic import read_window_records
from mindstream.audit import same_row

CERTIFICATE_FILE: Final = "certificate.json"

_SETTLED_S: Final = 5.0  # a window that nobody has written for so long is in the store
_AGAIN_S: Final = 0.5
_MOST: Final = 0.9  # of the users drawn must agree, though others are clicked all the time
_USERS_AT_ONCE: Final = 500


class NotFilled(Misconfigured):
    """The store does not hold what it should of a release; the message says what is wrong."""


class Certificate(BaseModel):
    """What was compared before readers were pointed at a release.

    Attributes:
        by: user, host and process that compared.
        partitions: of the windows topic.
        users: who have a window.
        rows: of interests in the store.
        rows_expected: by the windows; what workers write meanwhile may be between the two.
        sampled: users drawn at random, whose rows agree to the bit.
        moving: users drawn, too, who were clicked time and again while they were compared.
        seed: of the draw.
        rows_sha256: of the sampled users' ids, slots and vectors.
        files: sha256 of every file of the release.
    """

    model_config = ConfigDict(frozen=True)

    release: str
    by: str
    at: datetime
    seconds: float
    partitions: int
    users: int
    rows: int
    rows_expected: int
    sampled: int
    moving: int
    seed: int
    rows_sha256: str
    files: dict[str, str]


def certify(
    settings: Settings,
    index: InterestIndex,
    release: Release,
    *,
    partitions: int,
    sample: int,
    within_s: float,
    seed: int | None = None,
    progress: Callable[[str], None] = lambda doing: None,
    drew: Callable[[list[Window]], object] = lambda windows: None,
) -> Certificate:
    """Draw users from the windows topic, encode them here, and compare with the store.

    Args:
        settings: where the windows are.
        index: the store.
        release: fetched and verified by its manifest.
        partitions: of the windows topic.
        sample: users to draw; all if there are fewer.
        within_s: how long differences may take to go away, in seconds.
        seed: of the draw; drawn, too, if None.
        progress: is told what is being done.
        drew: is given the windows of the users drawn, as they were when all agreed.

    Raises:
        NotFilled: rows are missing, differ, or are too many.
        Unavailable: Kafka or the store does not answer.
    """
    began_at = time.monotonic()
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    progress("reading every window")
    with closing(_Windows(settings, release, partitions)) as state:
        state.read()
        drawn = state.draw(sample, random.Random(seed))  # noqa: S311  to be drawn again by its seed
        deadline = time.monotonic() + within_s
        wrong = drawn
        agreed: dict[str, bytes] = {}
        while True:
            progress(f"comparing {len(wrong)} of {len(drawn)} users")
            wrong = [
                user_id
                for some in _batched(wrong)
                for user_id in _different(index, release, state, some, agreed)
            ]
            settled = [user_id for user_id in wrong if state.settled(user_id)]
            rows = index.count("interests", release.name)
            surplus = abs(rows - state.rows)
            counts_agree = surplus <= release.manifest.interests * state.moving_users
            if not wrong and counts_agree:
                break
            enough = len(agreed) >= _MOST * len(drawn)
            if not settled and enough and counts_agree and time.monotonic() > deadline:
                break
            if time.monotonic() > deadline:
                raise NotFilled(_what_is_wrong(release.name, wrong, rows, state.rows))
            time.sleep(_AGAIN_S)
            if state.read():
                wrong, agreed = drawn, {}
        drew(state.windows(drawn))
        digest = hashlib.sha256()
        for user_id in sorted(agreed):
            digest.update(agreed[user_id])
        return Certificate(
            release=release.name,
            by=f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}",
            at=datetime.now(UTC),
            seconds=round(time.monotonic() - began_at, 3),
            partitions=partitions,
            users=state.users,
            rows=rows,
            rows_expected=state.rows,
            sampled=len(agreed),
            moving=len(wrong),
            seed=seed,
            rows_sha256=digest.hexdigest(),
            files={name: record.sha256 for name, record in release.manifest.files.items()},
        )


def _batched(user_ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(user_ids), _USERS_AT_ONCE):
        yield user_ids[start : start + _USERS_AT_ONCE]


class _Windows:
    """The windows topic, read on and on: how many rows each user has, and the drawn windows."""

    def __init__(self, settings: Settings, release: Release, partitions: int) -> None:
        self._settings = settings
        self._partitions = partitions
        self._items = AnnouncedItems()
        self._follower = ItemFollower(settings.kafka, self._items)
        self._codes = ItemCodes()
        self.encoder = WindowEncoder(MindEncoder(release), self._codes)
        self._next: dict[int, int] = {}
        self._first = True
        self._rows_of: dict[str, int] = {}
        self._packed: dict[str, bytes] = {}
        self._drawn: set[str] | None = None
        self._written_at: dict[str, float] = {}  # of those written since the first read
        self.rows = 0

    @property
    def users(self) -> int:
        return len(self._rows_of)

    @property
    def moving_users(self) -> int:
        """Users whose window was written a moment ago."""
        return sum(not self.settled(user_id) for user_id in self._written_at)

    def settled(self, user_id: str) -> bool:
        return time.monotonic() - self._written_at.get(user_id, -_SETTLED_S) > _SETTLED_S

    def close(self) -> None:
        self._follower.close()

    def read(self) -> bool:
        """All that was written since this was last called.

        Returns:
            Whether an item in a window counts otherwise than before, so that all was read anew.
        """
        changed = self._read_items() and not self._first
        if changed:
            self._next, self._rows_of, self.rows, self._first = {}, {}, 0, True
        first, self._first = self._first, False
        for gathered in read_window_records(
            self._settings.kafka,
            range(self._partitions),
            timeout_s=self._settings.worker.open_transaction_s,
            start=self._next,
        ):
            newest: dict[str, bytes | None] = {}  # a user may have been written many times
            for part in gathered:
                newest.update(zip(part.user_ids, part.values, strict=True))
                self._next[part.partition] = part.offsets[-1] + 1
            self._apply(newest, first=first)
        return changed

    def _read_items(self) -> bool:
        self._follower.poll()
        fresh, _ = self._items.take()
        put = [self.encoder.put_item(record.item_id, record.fields()) for record in fresh]
        return any(code is not None for code, _ in put)

    def _apply(self, newest: dict[str, bytes | None], *, first: bool) -> None:
        now = time.monotonic()
        values = [value for value in newest.values() if value is not None]
        packed = from_wires(values, self._codes)
        counts = iter(self.encoder.counts(packed).tolist() if packed else [])
        windows = iter(packed)
        for user_id, value in newest.items():
            window = None if value is None else next(windows)
            rows = 0 if window is None else next(counts)
            self.rows += rows - self._rows_of.pop(user_id, 0)
            if window is not None:
                self._rows_of[user_id] = rows
            if not first:
                self._written_at[user_id] = now
            if self._drawn is None or user_id in self._drawn:
                self._keep(user_id, window)

    def _keep(self, user_id: str, window: bytes | None) -> None:
        if window is None:
            self._packed.pop(user_id, None)
        else:
            self._packed[user_id] = window

    def draw(self, sample: int, rng: random.Random) -> list[str]:
        """Users at random; only their windows are kept from now on."""
        everyone = sorted(self._rows_of)
        drawn = rng.sample(everyone, min(sample, len(everyone)))
        self._drawn = set(drawn)
        self._packed = {user_id: self._packed[user_id] for user_id in drawn}
        return drawn

    def packed(self, user_id: str) -> bytes | None:
        return self._packed.get(user_id)

    def windows(self, user_ids: list[str]) -> list[Window]:
        """Of those who have one."""
        found = [self._packed[user_id] for user_id in user_ids if user_id in self._packed]
        return [unpack(packed, self._codes) for packed in found]


def _different(
    index: InterestIndex,
    release: Release,
    state: _Windows,
    user_ids: list[str],
    agreed: dict[str, bytes],
) -> list[str]:
    """Those whose rows are not as they should be; the others are noted with what agreed."""
    windows = {u: window for u in user_ids if (window := state.packed(u)) is not None}
    slots = release.manifest.interests
    stored = index.interests(release.name, user_ids, slots, "Strong", recent=True)
    expected: dict[str, list[int]] = {user_id: [] for user_id in user_ids}
    rows = state.encoder.encode(list(windows), list(windows.values()), None).rows
    for number, user_id in enumerate(rows.user_ids):
        expected[user_id].append(number)
    wrong = []
    for user_id, numbers in expected.items():
        of_user = {row.slot: row for row in stored.get(user_id, ())}
        if len(of_user) == len(numbers) and all(
            (row := of_user.get(int(rows.slots[number]))) is not None
            and same_row(row, rows, number)
            for number in numbers
        ):
            vectors = rows.vectors[numbers] if numbers else np.zeros((0,), np.float32)
            agreed[user_id] = user_id.encode() + vectors.tobytes()
        else:
            wrong.append(user_id)
    return wrong


def _what_is_wrong(release: str, wrong: list[str], rows: int, expected: int) -> str:
    counted = f"it has {rows} rows, and {expected} are expected by the windows"
    example = f"; {len(wrong)} users drawn differ, such as {wrong[0]!r}" if wrong else ""
    return (
        f"the store's interests of release {release} are not those of the windows: {counted}"
        f"{example}. Readers stay where they are. Are all workers running, and of this version?"
    )
