"""The releases whose interests a worker keeps up to date, one space of vectors beside the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from consumers.encoding import Encoded, WindowEncoder
from consumers.packed_window import ItemCodes
from encoder.announced_items import AnnouncedItems, Offsets
from encoder.errors import Misconfigured
from encoder.interest_index import InterestIndex
from encoder.item_record import ItemRecord
from encoder.mind_encoder import MindEncoder
from encoder.release import Release

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Served:
    """One of them, with its encoder.

    Attributes:
        items_from: the items topic's next offsets when its collection of items was written.
        items_at: the same when the encoder was made, which knows the items before them.
        withdrawn: items that were withdrawn at some time before.
    """

    release: Release
    encoder: WindowEncoder
    items_from: Offsets
    items_at: Offsets
    withdrawn: frozenset[str]

    @property
    def name(self) -> str:
        """The release's name."""
        return self.release.name


class ServedReleases:
    """All of them; the first is the one that a partition must be filled for before it is served."""

    def __init__(
        self,
        index: InterestIndex,
        codes: ItemCodes,
        *,
        threads: int,
        items: AnnouncedItems,
        read_items: Callable[[], None],
    ) -> None:
        """None yet.

        Args:
            index: the store, which must have a release's collections before it is served.
            codes: of the items in the windows.
            threads: of each encoder.
            items: as they are read.
            read_items: reads them to the end as of now; for any thread.
        """
        self._index = index
        self._codes = codes
        self._threads = threads
        self._items = items
        self._read_items = read_items
        self._served: list[Served] = []

    def __iter__(self) -> Iterator[Served]:
        return iter(tuple(self._served))

    def __contains__(self, name: str) -> bool:
        return any(served.name == name for served in self._served)

    @property
    def first(self) -> Served:
        """The one that was added first and not removed."""
        return self._served[0]

    def load(self, release: Release, items_from: Offsets) -> Served:
        """Make a release ready to be served. May take long; for any thread.

        Args:
            release: fetched and verified.
            items_from: as it was announced with.

        Raises:
            Misconfigured: the store has no collections of it, or its graph cannot be loaded.
            Unavailable: Kafka or the store does not answer.
        """
        if not self._index.has_release(release.name):
            raise Misconfigured(
                f"Milvus has no collections of release {release.name}; is MINDSTREAM_MILVUS__URI"
                " the store that the release was published to?"
            )
        manifest = release.manifest
        mixed = manifest.mix is not None
        self._index.create_release(release.name, manifest.width, mixed=mixed)
        encoder = WindowEncoder(MindEncoder(release, self._threads), self._codes)
        # Whoever takes over from us goes on from `items_from`: we must know no less.
        self._read_items()
        items_at = self._items.offsets
        known = self._items.since({})
        withdrawn = self._index.items.withdrawn(release.name)
        withdrawn.update(record.item_id for record in known if record.withdrawn)
        for record in known:
            _, problems = encoder.put_item(record.item_id, record.fields())
            if problems:
                log_problems(release.name, record, problems)
        log.info("items.known", release=release.name, of=len(known), items=len(encoder.further))
        return Served(release, encoder, items_from, items_at, frozenset(withdrawn))

    def add(self, served: Served) -> None:
        """Serve it from now on, in the place of one of the same name if there is one."""
        for place, one in enumerate(self._served):
            if one.name == served.name:
                self._served[place] = served
                return
        self._served.append(served)

    def get(self, name: str) -> Served:
        """The one of this name.

        Raises:
            KeyError: it is not served.
        """
        for served in self._served:
            if served.name == name:
                return served
        raise KeyError(name)

    def remove(self, name: str) -> bool:
        """Serve it no longer; tells whether it was served. The last one stays."""
        kept = [served for served in self._served if served.name != name]
        if not kept or len(kept) == len(self._served):
            return False
        self._served = kept
        return True

    def encode(
        self,
        user_ids: Sequence[str],
        packed: Sequence[bytes],
        before: Sequence[bytes | None] | None,
    ) -> dict[str, Encoded]:
        """What `WindowEncoder.encode` says for each of the releases, by name."""
        return {one.name: one.encoder.encode(user_ids, packed, before) for one in self._served}


def log_problems(release: str, record: ItemRecord, problems: Sequence[str]) -> None:
    """Say what is wrong with the fields of an item."""
    log.error(
        "item.field_ignored",
        release=release,
        partition=record.partition,
        offset=record.offset,
        problems=list(problems),
    )
