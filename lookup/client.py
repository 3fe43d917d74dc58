"""The client that downstream services import: interests, candidates and audiences.

Every answer is of one release: the client reads which release is in use, then only that release's
collections. Importing it needs neither Kafka nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import Hit, Interest, InterestIndex, ReleaseInUse
from encoder.milvus_store import MOST_ROWS, Consistency
from encoder.mix import recent_of
from encoder.mix_index import StoredMix
from encoder.settings import MilvusSettings
from lookup.item_table import ItemTable, ItemTables
from lookup.pointer import Pointer

_PER_LIMIT: Final = 4  # items that are asked of the store for one that a mix returns

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interests:
    """A user's interests in one release, strongest first; empty where the user has none."""

    user_id: str
    release: str
    interests: tuple[Interest, ...]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The items nearest to any interest of a user, best first, each once.

    Where they are `mixed`, the best by the release's mix instead, and scores are those of its rule.
    """

    user_id: str
    release: str
    items: tuple[Hit, ...]
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class Audience:
    """The users nearest to an item, best first, each once."""

    item_id: str
    release: str
    users: tuple[Hit, ...]


class UnknownItem(LookupError):  # noqa: N818
    """The release in use has no such item."""


class Lookup:
    """Reads interests from Milvus. Safe to use from several threads."""

    def __init__(
        self,
        settings: MilvusSettings,
        *,
        consistency: Consistency = "Bounded",
        items_in_memory: int = 0,
    ) -> None:
        """Connect.

        Args:
            settings: where the store is.
            consistency: the level of every read that does not name its own. `Bounded` may miss the
                last moments on a Milvus server; `Strong` sees everything and waits for it.
            items_in_memory: for processes that live long: a release with at most so many items is
                loaded, in the background, and searched here rather than by the store.

        Raises:
            Misconfigured: the store cannot be opened.
            Unavailable: it does not answer.
        """
        self._settings = settings
        self._index = InterestIndex(settings)
        self._consistency: Consistency = consistency
        self._items_in_memory = items_in_memory
        self._tables = ItemTables(self._load_items, self._changed_items)
        self._pointer = Pointer(self._read_release)
        self._known_mix: tuple[str, StoredMix | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._pointer.close()
        self._tables.close()
        self._index.close()

    def release(self) -> ReleaseInUse:
        """The release in use, at most a second old.

        Raises:
            Misconfigured: no release is in use yet.
        """
        in_use = self._pointer.get()
        if in_use is None:
            raise Misconfigured(
                f"no release is in use in {self._settings.uri} yet; publish one with"
                " `mindstream train` and start a worker"
            )
        return in_use

    @property
    def items_are_in_memory(self) -> bool:
        """Whether the items of the release in use are searched here."""
        return self._tables.get(self.release().name) is not None

    def interests(self, user_id: str, *, consistency: Consistency | None = None) -> Interests:
        """A user's interests, by key."""
        (found,) = self.interests_of([user_id], consistency=consistency)
        return found

    def interests_of(
        self, user_ids: Sequence[str], *, consistency: Consistency | None = None
    ) -> list[Interests]:
        """Many users' interests by key, in the order asked for."""
        return self._in_one_release(lambda one: self._interests_of(one, user_ids, consistency))

    def _interests_of(
        self, release: ReleaseInUse, user_ids: Sequence[str], consistency: Consistency | None
    ) -> list[Interests]:
        level = consistency or self._consistency
        found = self._index.interests(release.name, user_ids, release.slots, level)
        return [Interests(u, release.name, tuple(found.get(u, ()))) for u in user_ids]

    def candidates(
        self,
        user_id: str,
        *,
        limit: int = 50,
        mixed: bool = False,
        consistency: Consistency | None = None,
    ) -> Candidates:
        """The items nearest to a user's interests: an item counts with its best interest.

        Args:
            user_id: whose.
            limit: how many.
            mixed: add what the user's own items and recent popularity count, if the release has a
                mix. Users of whom nothing is known get what is popular.
            consistency: Milvus's level for the reads.
        """

        def read(release: ReleaseInUse) -> Candidates:
            if mixed and (stored := self._mix(release.name)) is not None:
                return self._mixed(release, stored, user_id, limit, consistency)
            return self._candidates(release, user_id, limit, consistency)

        return self._in_one_release(read)

    def _candidates(
        self, release: ReleaseInUse, user_id: str, limit: int, consistency: Consistency | None
    ) -> Candidates:
        (interests,) = self._interests_of(release, [user_id], consistency)
        if table := self._tables.get(release.name):
            nearest = table.nearest_to_any(_vectors(interests), limit)
            return Candidates(user_id, release.name, tuple(nearest))
        best: dict[str, float] = {}
        for hits in self.nearest_items(interests, limit=limit, consistency=consistency):
            for hit in hits:
                best[hit.id] = max(hit.score, best.get(hit.id, hit.score))
        ranked = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
        return Candidates(user_id, interests.release, tuple(Hit(*pair) for pair in ranked))

    def _mix(self, release: str) -> StoredMix | None:
        """The release's mix, which is read once."""
        known = self._known_mix
        if known is None or known[0] != release:
            known = self._known_mix = release, self._index.mixes.read(release)
        return known[1]

    def _mixed(
        self,
        release: ReleaseInUse,
        stored: StoredMix,
        user_id: str,
        limit: int,
        consistency: Consistency | None,
    ) -> Candidates:
        level = consistency or self._consistency
        rows = self._index.interests(release.name, [user_id], release.slots, level, recent=True)
        interests = Interests(user_id, release.name, tuple(rows.get(user_id, ())))
        own = {
            item_id: counts
            for row in interests.interests
            for item_id, counts in stored.mix.of_own(recent_of(row.recent)).items()
        }
        vectors = _vectors(interests)
        if table := self._tables.get(release.name):
            hits = table.best(vectors, stored, own, limit)
        else:
            hits = self._best_of_store(interests, vectors, stored, own, limit, level)
        return Candidates(user_id, release.name, tuple(hits), mixed=True)

    def _best_of_store(
        self,
        interests: Interests,
        vectors: NDArray[np.float32],
        stored: StoredMix,
        own: dict[str, float],
        limit: int,
        level: Consistency,
    ) -> list[Hit]:
        """The best of those that are among the nearest, the most popular or the user's own."""
        many = min(_PER_LIMIT * limit, MOST_ROWS)
        near: dict[str, float] = {}
        for hits in self.nearest_items(interests, limit=many, consistency=level):
            for hit in hits:
                near[hit.id] = max(hit.score, near.get(hit.id, hit.score))
        others = [one for one in {*own, *stored.most_popular[:many]} if one not in near]
        # Those that were withdrawn have none.
        for item_id, vector in self._index.item_vectors(interests.release, others, level).items():
            near[item_id] = float((vectors @ vector).max()) if len(vectors) else 0.0
        scores = [
            Hit(one, stored.mix.score(similarity, stored.popularity.get(one, 0.0), own.get(one)))
            for one, similarity in near.items()
        ]
        return sorted(scores, key=lambda hit: (-hit.score, hit.id))[:limit]

    def nearest_items(
        self, interests: Interests, *, limit: int, consistency: Consistency | None = None
    ) -> list[list[Hit]]:
        """The items nearest to each of a user's interests, in their release, best first."""
        if not interests.interests:
            return []
        vectors = _vectors(interests)
        if table := self._tables.get(interests.release):
            return table.nearest(vectors, limit)
        level = consistency or self._consistency
        return self._index.nearest_items(interests.release, vectors, limit, level)

    def audience(
        self, item_id: str, *, limit: int = 50, consistency: Consistency | None = None
    ) -> Audience:
        """The users with an interest nearest to an item.

        Raises:
            UnknownItem: the release in use has no such item.
        """
        return self._in_one_release(lambda one: self._audience(one, item_id, limit, consistency))

    def _audience(
        self, release: ReleaseInUse, item_id: str, limit: int, consistency: Consistency | None
    ) -> Audience:
        level = consistency or self._consistency
        vector = self._index.item_vectors(release.name, [item_id], level).get(item_id)
        if vector is None:
            raise UnknownItem(f"release {release.name} has no item {item_id!r}")
        hits = self._index.nearest_users(release.name, vector, limit, level)
        return Audience(item_id, release.name, tuple(hits))

    def _in_one_release(self, read: Callable[[ReleaseInUse], T]) -> T:
        """All of an answer from the release in use, and from another if that one is gone.

        What is remembered of which release is in use may be a moment old, and the collections may
        have been dropped meanwhile.
        """
        release = self.release()
        try:
            return read(release)
        except Unavailable:
            self._pointer.forget()
            again = self.release()
            if again == release:
                raise
            return read(again)

    def _read_release(self) -> ReleaseInUse | None:
        in_use = self._index.release_in_use()
        if in_use is not None and self._items_in_memory:
            self._tables.want(in_use.name)
        return in_use

    def _load_items(self, release: str, superseded: Callable[[], bool]) -> ItemTable | None:
        if self._index.count("items", release) > self._items_in_memory:
            return None
        item_ids, vectors = [], []
        for item_id, vector in self._index.all_items(release):
            if superseded():
                return None
            item_ids.append(item_id)
            vectors.append(vector)
        if not vectors:
            return None
        table = ItemTable(item_ids, np.stack(vectors))
        # What came while it was loaded may be in it or not.
        return self._changed_items(release, table) or table

    def _changed_items(self, release: str, table: ItemTable) -> ItemTable | None:
        changes = self._index.items.changes_since(release, table.seen, self._consistency)
        return None if changes is None else table.with_changes(changes)


def _vectors(interests: Interests) -> NDArray[np.float32]:
    """Float32 (n, D), without D where there are none."""
    return np.array([interest.vector for interest in interests.interests], np.float32)
