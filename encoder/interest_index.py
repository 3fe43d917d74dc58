"""The collections of releases: interests, items, and which release is in use."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType

from encoder.click import MAX_ID_BYTES
from encoder.interests import InterestRows, interest_key
from encoder.item_index import ItemIndex, items_of
from encoder.milvus_store import (
    MOST_ROWS,
    Consistency,
    IndexType,
    Lease,
    MilvusStore,
    Row,
    for_ever,
)
from encoder.mix import RECENT_BYTES
from encoder.mix_index import MixIndex
from encoder.pace import Pace
from encoder.settings import MilvusSettings

_POINTER: Final = "releases"
_POINTER_KEY: Final = "in_use"
_POINTER_WIDTH: Final = 2  # Milvus wants a vector in every collection
_KEY_BYTES: Final = MAX_ID_BYTES + 8  # "#" and the slot
_ITEMS_AT_ONCE: Final = 20_000
_WRITE_BUDGET_S: Final = 60.0
_USERS_AT_ONCE: Final = 100  # so that their rows fit one answer
_INTEREST_FIELDS: Final = ("user_id", "slot", "weight", "exemplar", "updated_at", "vector")
_ID: Final[tuple[DataType, dict[str, Any]]] = (DataType.VARCHAR, {"max_length": MAX_ID_BYTES})
_INTEREST_SCALARS: Final[dict[str, tuple[DataType, dict[str, Any]]]] = {
    "user_id": _ID,
    "slot": (DataType.INT64, {}),
    "weight": (DataType.FLOAT, {}),
    "exemplar": _ID,
    "updated_at": (DataType.INT64, {}),
}
_RECENT: Final[dict[str, tuple[DataType, dict[str, Any]]]] = {
    "recent": (DataType.VARCHAR, {"max_length": RECENT_BYTES})
}
"""Of releases with a mix."""


@dataclass(frozen=True, slots=True)
class Interest:
    """One interest of one user, as stored.

    Attributes:
        updated_at: event time in ms of the newest click in the window.
        vector: float32 (D,), of length 1 up to its marks.
        recent: the window's newest clicks, see `InterestRows.recent`; empty in slots but the first,
            of releases without a mix, and where it was not asked for.
    """

    user_id: str
    slot: int
    weight: float
    exemplar: str
    updated_at: int
    vector: NDArray[np.float32]
    recent: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a nearest-neighbour search: an item's or a user's id and its similarity."""

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class ReleaseInUse:
    """The release that readers read, and its K: the most interests that a user has in it."""

    name: str
    slots: int


class InterestIndex:
    """Reads and writes the collections of one store. Every read and write may raise Unavailable."""

    def __init__(self, settings: MilvusSettings, *, max_behind_s: float | None = None) -> None:
        """Connect; raises what `MilvusStore` does.

        Args:
            settings: where the store is.
            max_behind_s: how far readers of interests may be behind what this process writes
                before it waits for them; None for as far as they are.
        """
        self._store = MilvusStore(settings)
        self.items = ItemIndex(self._store)
        self.mixes = MixIndex(self._store)
        self._max_behind_s = max_behind_s
        self._paces: dict[str, Pace] = {}

    def close(self) -> None:
        """Let go of the connection."""
        for pace in self._paces.values():
            pace.close()
        self._store.close()

    @property
    def behind_s(self) -> float:
        """For how long, so far, interests that were written could not be read."""
        return max((pace.behind_s for pace in list(self._paces.values())), default=0.0)

    # Releases ------------------------------------------------------------------------------

    def create_release(self, release: str, width: int, *, mixed: bool = False) -> None:
        """Create a release's two collections where they do not exist yet, and load them.

        Args:
            release: its name.
            width: D.
            mixed: whether it has a mix, so that rows say what was clicked of late.
        """
        # Rows of interests are written all the time. A server indexes them in segments that are
        # full; Lite would index all that it has anew after every 128 MB, on the writers' cores.
        searched: IndexType = "FLAT" if self._store.is_lite else "AUTOINDEX"
        scalars = _INTEREST_SCALARS | _RECENT if mixed else _INTEREST_SCALARS
        self._store.create(
            _interests(release), ("id", _KEY_BYTES), scalars, width, index_type=searched
        )
        self._store.create(
            items_of(release), ("item_id", MAX_ID_BYTES), {}, width, index_type="FLAT"
        )

    def has_release(self, release: str) -> bool:
        """Whether both collections of a release exist."""
        return self._store.exist(_interests(release), items_of(release))

    def drop_release(self, release: str) -> None:
        """Drop a release's collections; absent ones are no error."""
        self._store.drop(_interests(release))
        self._store.drop(items_of(release))
        self.items.drop(release)
        self.mixes.drop(release)

    def release_in_use(self) -> ReleaseInUse | None:
        """What readers should read, None before the first release."""
        if not self._store.exist(_POINTER):
            return None
        found = self._store.get(_POINTER, "key", [_POINTER_KEY], ["release", "slots"], "Strong")
        return ReleaseInUse(found[0]["release"], int(found[0]["slots"])) if found else None

    def use_release(self, release: str, slots: int, *, lease: Lease = for_ever) -> None:
        """Point readers at a release: one row changes, so both its collections change at once.

        Args:
            release: its collections exist.
            slots: K, the most interests that a user has in it.
            lease: for how long this process may write.

        Raises:
            LeaseRanOut: this process may no longer write.
            Unavailable: the store did not take it.
        """
        self._store.create(
            _POINTER,
            ("key", 16),
            {"release": (DataType.VARCHAR, {"max_length": 64}), "slots": (DataType.INT64, {})},
            _POINTER_WIDTH,
        )
        row = {
            "key": [_POINTER_KEY],
            "release": [release],
            "slots": [slots],
            "vector": np.ones((1, _POINTER_WIDTH), np.float32),
        }
        deadline = time.monotonic() + _WRITE_BUDGET_S
        self._store.upsert(_POINTER, row, deadline=deadline, lease=lease)

    # Writes --------------------------------------------------------------------------------

    def write_interests(
        self,
        release: str,
        rows: InterestRows,
        stale_keys: Sequence[str],
        *,
        budget_s: float,
        lease: Lease = for_ever,
    ) -> None:
        """Write rows, and delete those under `stale_keys`; may be repeated with the same outcome.

        Args:
            release: whose interests these are.
            rows: each key at most once.
            stale_keys: keys of rows that must not exist afterwards; need not exist before.
            budget_s: time for all of it, retries included, and half of it at most for readers that
                are too far behind.
            lease: for how long this process may write.

        Raises:
            LeaseRanOut: this process may no longer write; some of it may be written.
            Unavailable: the store did not take it within the budget.
        """
        deadline = time.monotonic() + budget_s
        columns = {
            "id": rows.keys,
            "user_id": rows.user_ids,
            "slot": rows.slots,
            "weight": rows.weights,
            "exemplar": rows.exemplars,
            "updated_at": rows.updated_at,
            "vector": rows.vectors,
        }
        if rows.recent is not None:
            columns["recent"] = rows.recent
        name = _interests(release)
        pace = self._pace(release)
        if pace is not None:
            pace.wait(until=deadline - budget_s / 2)
        self._store.upsert(name, columns, deadline=deadline, lease=lease)
        self._store.delete(name, "id", stale_keys, deadline=deadline, lease=lease)
        if pace is not None:
            pace.wrote()

    def _pace(self, release: str) -> Pace | None:
        if self._max_behind_s is None or self._store.is_lite:  # Lite's rows are there at once
            return None
        if release not in self._paces:
            key = ["#"]  # nobody's: a strong read waits for all of the collection
            self._paces[release] = Pace(
                lambda: self._store.get(_interests(release), "id", key, ["id"], "Strong"),
                most_s=self._max_behind_s,
            )
        return self._paces[release]

    def forget(
        self,
        user_ids: Sequence[str],
        releases: Iterable[str],
        *,
        budget_s: float,
        lease: Lease = for_ever,
    ) -> None:
        """Delete all rows of these users from those of the releases that the store has.

        Raises:
            LeaseRanOut: this process may no longer write; some rows may be deleted.
            Unavailable: the store did not do it within the budget.
        """
        deadline = time.monotonic() + budget_s
        for release in releases:
            for start in range(0, len(user_ids), _USERS_AT_ONCE):
                some = user_ids[start : start + _USERS_AT_ONCE]
                self._store.delete_where(
                    _interests(release), "user_id", some, "id", deadline=deadline, lease=lease
                )

    def write_items(
        self, release: str, item_ids: Sequence[str], vectors: NDArray[np.float32]
    ) -> Iterator[int]:
        """Write items, yielding how many are written so far.

        Args:
            release: whose items these are.
            item_ids: N distinct ids.
            vectors: float32 (N, D).
        """
        for start in range(0, len(item_ids), _ITEMS_AT_ONCE):
            some = item_ids[start : start + _ITEMS_AT_ONCE]
            columns = {"item_id": some, "vector": vectors[start : start + _ITEMS_AT_ONCE]}
            deadline = time.monotonic() + _WRITE_BUDGET_S
            self._store.upsert(items_of(release), columns, deadline=deadline)
            yield start + len(some)
        self._store.flush(items_of(release))

    # Reads ---------------------------------------------------------------------------------

    def interests(
        self,
        release: str,
        user_ids: Sequence[str],
        slots: int,
        consistency: Consistency,
        *,
        recent: bool = False,
    ) -> dict[str, list[Interest]]:
        """Users' interests by key, strongest first; users without any are left out.

        Args:
            release: to read from.
            user_ids: whose interests.
            slots: K of the release.
            consistency: Milvus's level for this read.
            recent: read what was clicked of late, too, if the release has it.
        """
        fields = self._fields(release) if recent else _INTEREST_FIELDS
        keys = [interest_key(user_id, slot) for user_id in user_ids for slot in range(slots)]
        by_user: dict[str, list[Interest]] = {}
        found = self._store.get(_interests(release), "id", keys, fields, consistency)
        for interest in map(_interest, found):
            by_user.setdefault(interest.user_id, []).append(interest)
        for interests in by_user.values():
            interests.sort(key=lambda interest: (-interest.weight, interest.slot))
        return by_user

    def rows_by_collection(self, user_id: str) -> dict[str, list[int]]:
        """For every collection of interests, whatever its release: `updated_at` of a user's rows.

        Strongly consistent. For proving that nothing is left of a user.
        """
        return {
            name: [
                int(row["updated_at"])
                for row in self._store.get(name, "user_id", [user_id], ["updated_at"], "Strong")
            ]
            for name in self._store.names()
            if name.startswith(_interests(""))
        }

    def all_interests(self, release: str) -> Iterator[Interest]:
        """Every row of a release's interests written before the call, for audits."""
        return map(_interest, self._store.rows(_interests(release), "id", self._fields(release)))

    def _fields(self, release: str) -> tuple[str, ...]:
        recent = set(_RECENT) & set(self._store.fields(_interests(release)))
        return *_INTEREST_FIELDS, *recent

    def users(self, release: str) -> Iterator[str]:
        """The user of every row of a release's interests written before the call, row by row."""
        for row in self._store.rows(_interests(release), "id", ["user_id"]):
            yield row["user_id"]

    def all_items(self, release: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every item of a release with its vector, float32 (D,)."""
        for row in self._store.rows(items_of(release), "item_id", ["vector"]):
            yield row["item_id"], np.asarray(row["vector"], np.float32)

    def count(self, collection: Literal["interests", "items"], release: str) -> int:
        """Rows of one of a release's collections, strongly consistent."""
        name = _interests(release) if collection == "interests" else items_of(release)
        return self._store.count(name)

    def nearest_items(
        self, release: str, vectors: NDArray[np.float32], limit: int, consistency: Consistency
    ) -> list[list[Hit]]:
        """The items nearest to each of n vectors (n, D) by inner product, best first."""
        found = self._store.search(items_of(release), vectors, limit, "item_id", consistency)
        return [[Hit(*hit) for hit in hits] for hits in found]

    def nearest_users(
        self, release: str, vector: NDArray[np.float32], limit: int, consistency: Consistency
    ) -> list[Hit]:
        """The users with an interest nearest to a vector (D,), each once, best first."""
        # A user's slots may all be near: ask for more rows than users until enough are distinct.
        asked = limit
        while True:
            asked = min(asked * 2, MOST_ROWS)
            (found,) = self._store.search(
                _interests(release), vector[None], asked, "user_id", consistency
            )
            best: dict[str, float] = {}
            for user_id, score in found:
                best.setdefault(user_id, score)
            if len(best) >= limit or len(found) < asked or asked == MOST_ROWS:
                return [Hit(*hit) for hit in list(best.items())[:limit]]

    def item_vectors(
        self, release: str, item_ids: Sequence[str], consistency: Consistency = "Bounded"
    ) -> dict[str, NDArray[np.float32]]:
        """Vectors, float32 (D,), of those items that the release knows."""
        fields = ["item_id", "vector"]
        found = self._store.get(items_of(release), "item_id", item_ids, fields, consistency)
        return {row["item_id"]: np.asarray(row["vector"], np.float32) for row in found}


def _interests(release: str) -> str:
    return f"interests_{release}"


def _interest(row: Row) -> Interest:
    return Interest(
        user_id=row["user_id"],
        slot=int(row["slot"]),
        weight=float(row["weight"]),
        exemplar=row["exemplar"],
        updated_at=int(row["updated_at"]),
        vector=np.asarray(row["vector"], np.float32),
        recent=row.get("recent", ""),
    )
