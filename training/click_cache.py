"""A cache of the clicks topic in Parquet, which each run of the trainer brings up to date.

Every change is made in this order: new files are written, the manifest that names them takes the
place of the one before, files that it no longer names are deleted. A kill in between leaves the
cache as it was before or after, and files that the next run deletes.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoder.click import Click, Erasure
from encoder.click_history import ClicksExtent, read_click_blocks
from encoder.errors import Misconfigured
from encoder.settings import Settings
from encoder.window import NEVER
from training.click_manifest import LOCK_FILE, PART_NAME, CacheManifest, ManifestError, Part
from training.click_merging import SAVED, joined_ranges, to_merge
from training.click_parts import (
    SCHEMA,
    TIMESTAMP,
    Forgotten,
    as_table,
    forget_pseudonyms,
    pseudonym,
    sha256_of,
    write_part,
)

PART_CLICKS: Final = 1_000_000
_AT_ONCE: Final = 16_384  # clicks are objects until so many are put into columns


@dataclass(frozen=True)
class Plan:
    """What a run brings the cache to; the same plan again changes nothing.

    Attributes:
        extent: of the topic; clicks are read up to its ends.
        horizon_ms: parts with older clicks alone are dropped; None to drop those whose records the
            topic no longer had.
        erased_since_ms: older erasures are no longer remembered.
        part_clicks: most clicks of a part, and in memory.
        merge_saves: how many files fewer there must be for small parts to be merged.
    """

    extent: ClicksExtent
    horizon_ms: int | None = None
    erased_since_ms: int = NEVER
    part_clicks: int = PART_CLICKS
    merge_saves: int = SAVED


@dataclass(frozen=True)
class Cached:
    """What a cache holds after a run.

    Attributes:
        new: clicks that this run read from the topic for the first time.
        kept: clicks that were there before.
    """

    new: int
    kept: int


class ClickCache:
    """The cache in a folder, for one process at a time; others wait.

    Args:
        folder: holds the parts and the manifest; made if it is absent.
        settings: where the topic is, and what a click is.
        warn: is told what was not as it should be.
        after: is told each thing that was done to the folder.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        warn: Callable[[str], None] = lambda what: None,
        after: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._topic = settings.kafka.clicks_topic
        self._warn = warn
        self._after = after
        self._manifest = CacheManifest(topic=self._topic, topic_id="")

    def update(
        self,
        plan: Plan,
        *,
        current: ClicksExtent,
        progress: Callable[[int], None] = lambda clicks: None,
    ) -> Cached:
        """Read what is new, forget what is to be forgotten, and drop what is too old.

        Args:
            plan: how far to read, and what is too old.
            current: what the topic holds now, which may differ from the plan's.
            progress: is told how many new records are read so far.

        Raises:
            Misconfigured: the folder holds other Parquet files.
            Unavailable: Kafka does not answer. What was read by then is kept.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it says who clicked what
        with _locked(self._folder / LOCK_FILE):
            self._open(current)
            self._drop_old(plan)
            self._mend(current)
            kept = {part.number for part in self._manifest.parts}
            self._read_new(plan, current, progress)
            self._erase(kept)
            rows = {part.number: part.rows for part in self._manifest.parts}
            old = sum(count for number, count in rows.items() if number in kept)
            cached = Cached(new=sum(rows.values()) - old, kept=old)
            if cached.new:  # else another process of this training may be reading the parts
                self._merge(plan)
        return cached

    def forget(self, user_id: str, up_to_ms: int) -> int:
        """Forget a user's clicks now, as the next update would once it has read the tombstone.

        No training may read the parts meanwhile. One that is killed leaves the rest to the next
        update.

        Args:
            user_id: whose.
            up_to_ms: those up to then.

        Returns:
            How many clicks are gone.

        Raises:
            Misconfigured: a part is damaged; the next update reads it again, and forgets the user.
        """
        if not self._folder.exists():
            return 0
        with _locked(self._folder / LOCK_FILE):
            found = CacheManifest.read(self._folder)
            if found is None:
                return 0
            name = pseudonym(user_id)
            erased = {**found.erased, name: max(up_to_ms, found.erased.get(name, NEVER))}
            to_erase = {**found.to_erase, user_id: erased[name]}
            before = sum(part.rows for part in found.parts)
            self._commit(found.model_copy(update={"erased": erased, "to_erase": to_erase}))
            try:
                self._erase(set())
            except (OSError, pa.ArrowException) as error:
                raise Misconfigured(
                    f"the cache in {self._folder} is damaged: {error}; the next training run reads"
                    " what is missing again, and forgets the user before it trains"
                ) from error
        return before - sum(part.rows for part in self._manifest.parts)

    def _open(self, current: ClicksExtent) -> None:
        anew = CacheManifest(topic=self._topic, topic_id=current.topic_id)
        try:
            found = CacheManifest.read(self._folder)
        except ManifestError as error:
            self._warn(f"{error}; reading {self._topic} anew")
            found = None
        if found is not None and (reason := self._of_another_topic(found, current)):
            self._warn(f"the clicks cached in {self._folder} are dropped: {reason}")
            found = None
        self._manifest = found or anew
        if found is None:
            self._commit(anew)
        self._delete_unnamed()

    def _of_another_topic(self, found: CacheManifest, current: ClicksExtent) -> str | None:
        if found.topic != self._topic:
            return f"they are of {found.topic}, not of {self._topic}"
        if found.topic_id != current.topic_id:
            return f"{self._topic} was deleted and created again since"
        for partition, offset in found.next_offsets.items():
            if current.ends.get(partition, 0) < offset:
                return f"{self._topic}[{partition}] ended at {offset} or later, and lost its end"
        return None

    def _drop_old(self, plan: Plan) -> None:
        parts = [part for part in self._manifest.parts if not _too_old(part, plan)]
        erased = {
            user: at_ms
            for user, at_ms in self._manifest.erased.items()
            if at_ms >= plan.erased_since_ms
        }
        if len(parts) < len(self._manifest.parts) or len(erased) < len(self._manifest.erased):
            self._commit(self._manifest.model_copy(update={"parts": parts, "erased": erased}))
            self._delete_unnamed()

    def _mend(self, current: ClicksExtent) -> None:
        """Read the records of damaged parts again, as far as the topic still has them."""
        for part in self._manifest.parts:
            path = self._folder / part.file
            try:
                found = sha256_of(path)
            except OSError as error:
                found = str(error)
            if found == part.sha256:
                continue
            starts, ends, lost = {}, {}, []
            for partition, (first, end) in part.ranges.items():
                begin = current.begins.get(partition, end)
                starts[partition], ends[partition] = max(first, min(begin, end)), end
                if begin > first:
                    lost.append(f"[{partition}] from {first} to {min(begin, end)}")
            self._warn(
                f"{path} is damaged; reading its {part.rows:,} clicks from {self._topic} again"
                + (f", which no longer has {', '.join(lost)}" if lost else "")
            )
            others = [one for one in self._manifest.parts if one is not part]
            self._manifest = self._manifest.model_copy(update={"parts": others})
            for chunk in self._chunks(starts, ends, None):
                self._append(chunk)
            self._delete_unnamed()

    def _read_new(self, plan: Plan, current: ClicksExtent, progress: Callable[[int], None]) -> None:
        starts = {}
        for partition in plan.extent.ends:
            begin = current.begins.get(partition, 0)
            starts[partition] = self._manifest.next_offsets.get(partition, begin)
            if starts[partition] < begin:
                self._warn(
                    f"{self._topic}[{partition}]: the records from {starts[partition]} to {begin}"
                    " were deleted by the topic's retention before a training read them; train"
                    " more often, or keep clicks for longer"
                )
                starts[partition] = begin
        ends = {
            partition: min(end, current.ends.get(partition, 0))
            for partition, end in plan.extent.ends.items()
        }
        for chunk in self._chunks(starts, ends, plan.part_clicks, progress):
            self._append(chunk, plan.horizon_ms)

    def _chunks(
        self,
        starts: Mapping[int, int],
        ends: Mapping[int, int],
        at_most: int | None,
        progress: Callable[[int], None] = lambda clicks: None,
    ) -> Iterator[_Chunk]:
        """The records between, so many clicks at a time; at least one chunk, maybe empty."""
        reached = dict(starts)
        chunk = _Chunk(dict(starts))
        read = told = 0
        for block in read_click_blocks(self._settings, starts, ends):
            chunk.add(block.events)
            reached[block.partition] = block.next_offset
            read += len(block.events)
            if read - told >= _AT_ONCE:
                progress(told := read)
            if at_most is not None and chunk.clicks >= at_most:
                chunk.ends = dict(reached)
                yield chunk
                chunk = _Chunk(dict(reached))
        chunk.ends = {partition: max(starts[partition], end) for partition, end in ends.items()}
        yield chunk

    def _append(self, chunk: _Chunk, horizon_ms: int | None = None) -> None:
        """Write a chunk's clicks, those from the horizon on, and note how far it reaches."""
        manifest = self._manifest
        erased, to_erase = dict(manifest.erased), dict(manifest.to_erase)
        for user, at_ms in chunk.erased.items():
            name = pseudonym(user)
            if at_ms > erased.get(name, NEVER):
                erased[name] = to_erase[user] = at_ms
        parts = list(manifest.parts)
        clicks = forget_pseudonyms(chunk.table(), erased)
        if horizon_ms is not None:
            clicks = clicks.filter(pc.field(TIMESTAMP) >= horizon_ms)
        if len(clicks):
            ranges = {
                partition: (first, chunk.ends[partition])
                for partition, first in chunk.starts.items()
                if chunk.ends[partition] > first
            }
            parts.append(self._written(clicks, ranges))
        reached = {
            partition: max(end, manifest.next_offsets.get(partition, 0))
            for partition, end in chunk.ends.items()
        }
        self._commit(
            manifest.model_copy(
                update={
                    "next_offsets": {**manifest.next_offsets, **reached},
                    "parts": parts,
                    "erased": erased,
                    "to_erase": to_erase,
                }
            )
        )

    def _erase(self, kept: set[int]) -> None:
        """Write the parts anew that hold clicks of erased users; `kept` follows their numbers."""
        manifest = self._manifest
        if not manifest.to_erase:
            return
        forgotten = Forgotten(manifest.to_erase)
        parts: list[Part] = []
        number = manifest.next_number
        for part in manifest.parts:
            path = self._folder / part.file
            if not forgotten.in_part(path):
                parts.append(part)
                continue
            left = forgotten.removed_from(pq.read_table(path, schema=SCHEMA))
            if len(left):
                parts.append(self._written(left, part.ranges, number))
                if part.number in kept:
                    kept.add(number)
                number += 1
        self._commit(manifest.model_copy(update={"parts": parts, "to_erase": {}}))
        self._delete_unnamed()

    def _merge(self, plan: Plan) -> None:
        """Put small parts together, one run of them at a time."""
        for run in to_merge(
            self._manifest.parts, most_clicks=plan.part_clicks, saved=plan.merge_saves
        ):
            clicks = pa.concat_tables(
                pq.read_table(self._folder / part.file, schema=SCHEMA) for part in run
            )
            parts = list(self._manifest.parts)
            place = parts.index(run[0])
            parts[place : place + len(run)] = [self._written(clicks, joined_ranges(run))]
            self._commit(self._manifest.model_copy(update={"parts": parts}))
            self._delete_unnamed()

    def _written(
        self, clicks: pa.Table, ranges: Mapping[int, tuple[int, int]], number: int | None = None
    ) -> Part:
        name = f"part_{self._manifest.next_number if number is None else number:08}.parquet"
        sha256 = write_part(self._folder / name, clicks)
        times = clicks.column(TIMESTAMP).to_numpy()
        self._after(f"wrote {name}")
        return Part(
            file=name,
            rows=len(clicks),
            oldest_ms=int(times.min()),
            newest_ms=int(times.max()),
            sha256=sha256,
            ranges=dict(ranges),
        )

    def _commit(self, manifest: CacheManifest) -> None:
        manifest.write(self._folder)
        self._manifest = manifest
        self._after("wrote the manifest")

    def _delete_unnamed(self) -> None:
        named = {self._folder / part.file for part in self._manifest.parts}
        for path in sorted({*self._folder.rglob("*.parquet")} - named):
            if not PART_NAME.fullmatch(path.name) or path.parent != self._folder:
                raise Misconfigured(
                    f"{path} is not of the trainer's cache; MINDSTREAM_TRAINER__CLICK_CACHE must"
                    " name a folder of its own"
                )
            path.unlink()
            self._after(f"deleted {path.name}")


@dataclass
class _Chunk:
    """Records on their way into a part.

    Attributes:
        starts: where they begin, by partition.
        ends: where they end.
        clicks: how many.
        erased: users to forget, and up to when, in ms.
    """

    starts: dict[int, int]
    ends: dict[int, int] = field(default_factory=dict)
    clicks: int = 0
    erased: dict[str, int] = field(default_factory=dict)
    _held: list[Click] = field(default_factory=list)
    _tables: list[pa.Table] = field(default_factory=list)

    def add(self, events: list[Click | Erasure]) -> None:
        for event in events:
            if isinstance(event, Click):
                self._held.append(event)
                self.clicks += 1
            else:
                self.erased[event.user_id] = max(
                    event.up_to_ms, self.erased.get(event.user_id, NEVER)
                )
        if len(self._held) >= _AT_ONCE:
            self._put_into_columns()

    def table(self) -> pa.Table:
        self._put_into_columns()
        return pa.concat_tables(self._tables) if self._tables else SCHEMA.empty_table()

    def _put_into_columns(self) -> None:
        if self._held:
            self._tables.append(as_table(self._held))
            self._held = []


def _too_old(part: Part, plan: Plan) -> bool:
    if plan.horizon_ms is not None:
        return part.newest_ms < plan.horizon_ms
    begins = plan.extent.begins
    return all(end <= begins.get(partition, end) for partition, (_, end) in part.ranges.items())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
