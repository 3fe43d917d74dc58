"""What a worker does with partitions it is given, before it serves them.

It restores their windows, and fills the served release's collection where no owner has done so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from consumers.click_topic import ClickTopic, Outdated
from consumers.encoding import WindowEncoder
from consumers.window_store import WindowStore
from encoder.interest_index import InterestIndex
from encoder.release import Release
from encoder.release_topic import read_releases, report_filled, take_back
from encoder.settings import Settings

_FILL_USERS: Final = 4096
_RESTORE_STEP: Final = 10_000


@dataclass(frozen=True, slots=True)
class Taken:
    """What a takeover did.

    Attributes:
        unsettled_until: partition → offset up to which a predecessor may have written to the store
            without committing.
        restored: windows read back.
        filled: users encoded for the release's collection.
    """

    unsettled_until: dict[int, int]
    restored: int
    filled: int


class Takeover:
    """Takes partitions over for one release."""

    def __init__(
        self,
        settings: Settings,
        topic: ClickTopic,
        store: WindowStore,
        encoder: WindowEncoder,
        index: InterestIndex,
        *,
        release: Release,
        partitions: int,
        progress: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Put it together.

        Args:
            partitions: of the clicks topic, all in all.
            progress: is told what is being done and how far it is.
            stopping: whether the worker is to stop.
        """
        self._settings = settings
        self._topic = topic
        self._store = store
        self._encoder = encoder
        self._index = index
        self._release = release.name
        self._slots = release.manifest.interests
        self._partitions = partitions
        self._progress = progress
        self._stopping = stopping

    def take(self, gained: Iterable[int]) -> Taken:
        """Restore and fill partitions.

        Raises:
            Outdated: some of the partitions were lost again meanwhile, or the worker is to stop.
                None of them may be served; those still assigned must be taken anew.
        """
        gained = sorted(gained)
        # First withdraw what will no longer be true once we write.
        log = read_releases(self._settings.kafka)
        outdated = {(r, p) for r, p in log.filled if p in gained and r != self._release}
        take_back(self._settings.kafka, outdated)
        unsettled_until = self._topic.end_offsets(gained)
        restored = self._restore(gained)
        unfilled = [p for p in gained if (self._release, p) not in log.filled]
        filled = sum(self._fill(partition, gained) for partition in unfilled)
        self._keep(gained)
        report_filled(self._settings.kafka, self._release, unfilled)
        self._use_when_complete()
        return Taken(unsettled_until, restored, filled)

    def _restore(self, gained: list[int]) -> int:
        for partition in gained:
            self._store.add_partition(partition)
        count = 0
        for partition, user_id, window in self._topic.restore(gained):
            self._store.restore(partition, user_id, window)
            count += 1
            if count % _RESTORE_STEP == 0:
                self._progress(f"restoring windows: {count}")
                self._keep(gained)
        return count

    def _fill(self, partition: int, gained: list[int]) -> int:
        users = self._store.users(partition)
        count = 0
        while chunk := list(islice(users, _FILL_USERS)):
            self._keep(gained)
            user_ids, packed = zip(*chunk, strict=True)
            encoded = self._encoder.encode(user_ids, packed, before=None)
            self._index.write_interests(
                self._release,
                encoded.rows,
                encoded.stale_keys,
                budget_s=self._settings.worker.step_budget_s,
            )
            count += len(chunk)
            self._progress(f"filling release {self._release}: {count} users of one partition")
        return count

    def _keep(self, gained: list[int]) -> None:
        """Stay a member of the group; see that the partitions are still ours."""
        lost = self._topic.keep_membership() & set(gained)
        if lost:
            raise Outdated(f"partitions {sorted(lost)} were given to another worker")
        if self._stopping():
            raise Outdated("the worker is to stop")

    def _use_when_complete(self) -> None:
        log = read_releases(self._settings.kafka)
        newest, in_use = log.newest, self._index.release_in_use()
        if (
            newest is not None
            and newest.release == self._release
            and log.is_filled(self._release, self._partitions)
            and (in_use is None or in_use.name != self._release)
        ):
            self._index.use_release(self._release, self._slots)
