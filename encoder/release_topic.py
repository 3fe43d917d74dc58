"""The releases topic: which releases were announced, and which partitions are filled for them.

Compacted, one partition. An announcement has the key `release/<name>`; a tombstone withdraws it. A
report has the key `filled/<name>/<partition>` and says that the interests of every window on that
partition are in the release's collection, and are kept up to date by the partition's owner. An
owner that does not serve the release takes the report back first, since it will not keep that
collection up to date. The key `used/<name>` says since when readers have read a release, or did.
The key `dropping/<name>` stands from its withdrawal until its collections are gone.
The key `items/<name>/<partition>` says up to which offsets of the items topic the rows of that
partition's users take items into account; it goes with the report of that partition.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from pydantic import BaseModel, ConfigDict, ValidationError

from encoder.announced_items import Offsets
from encoder.errors import Misconfigured, Unavailable
from encoder.kafka_client import open_reader, producer, read_to_end, translated
from encoder.settings import KafkaSettings

_RELEASE: Final = "release/"
_FILLED: Final = "filled/"
_USED: Final = "used/"
_DROPPING: Final = "dropping/"
_ITEMS: Final = "items/"
_TIMEOUT_S: Final = 30.0
_POLL_MS: Final = 200

_Record = TypeVar("_Record", bound=BaseModel)


class Announcement(BaseModel):
    """A release that workers may serve: its name and where its folder is (any fsspec URL).

    Attributes:
        items: by partition of the items topic, the next offset: its collection of items was written
            with all that lies before it taken into account.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    release: str
    url: str
    items: dict[int, int] = {}


class _ItemsSeen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    offsets: dict[int, int]


class Use(BaseModel):
    """Readers were pointed at a release.

    Attributes:
        slots: K of the release.
        at_ms: when, in ms since 1970.
        back_from: the release that they left, where this was a way back: it was found bad.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    release: str
    slots: int
    at_ms: int
    back_from: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseLog:
    """The releases topic, read to its end.

    Attributes:
        announced: oldest first; a release announced again counts as newest.
        filled: (release, partition) pairs that are reported and not taken back.
        used: when readers were pointed at a release, the last time for each, oldest first.
        dropping: releases that were withdrawn, and whose collections may still be there.
        items: (release, partition) → next offsets of the items topic.
    """

    announced: tuple[Announcement, ...]
    filled: frozenset[tuple[str, int]]
    used: tuple[Use, ...] = ()
    dropping: tuple[str, ...] = ()
    items: Mapping[tuple[str, int], Offsets] = field(default_factory=dict)

    def announcement(self, release: str) -> Announcement | None:
        """Of a release that was announced and not withdrawn."""
        return next((one for one in self.announced if one.release == release), None)

    @property
    def found_bad(self) -> set[str]:
        """Releases that readers were pointed back from, and were not pointed at again."""
        place = {use.release: number for number, use in enumerate(self.used)}
        return {
            use.back_from
            for number, use in enumerate(self.used)
            if use.back_from is not None and place.get(use.back_from, -1) < number
        }

    def is_filled(self, release: str, partitions: int) -> bool:
        """Whether every partition is reported for the release."""
        return all((release, partition) in self.filled for partition in range(partitions))


def read_releases(settings: KafkaSettings) -> ReleaseLog:
    """Read the whole topic.

    Raises:
        Misconfigured: a record is no announcement; names its offset.
        Unavailable: Kafka does not answer.
    """
    state = _State(settings)
    partition = TopicPartition(settings.releases_topic, 0)
    with translated("reading releases", settings):
        for records in read_to_end(settings, [partition], timeout_s=_TIMEOUT_S):
            for record in records:
                state.apply(record)
    return state.log


class ReleaseFollower:
    """Reads the topic as it grows, for whoever looks at it time and again."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Begin with the first record.

        Raises:
            Unavailable: Kafka does not answer.
        """
        self._settings = settings
        self._state = _State(settings)
        self._consumer: KafkaConsumer | None = None

    def poll(self) -> ReleaseLog:
        """What the topic says now. Never a part of it: that would look like withdrawals.

        Raises:
            Misconfigured: a record is no announcement; names its offset.
            Unavailable: Kafka does not answer.
        """
        partition = TopicPartition(self._settings.releases_topic, 0)
        deadline = time.monotonic() + _TIMEOUT_S
        with translated("following releases", self._settings):
            if self._consumer is None:
                self._consumer = open_reader(self._settings)
                self._consumer.assign([partition])
            end = self._consumer.end_offsets([partition])[partition]
            while self._consumer.position(partition) < end:
                for records in self._consumer.poll(timeout_ms=_POLL_MS).values():
                    for record in records:
                        self._state.apply(record)
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{partition.topic}[0] could not be read to its end within {_TIMEOUT_S:g} s"
                    )
        return self._state.log

    def close(self) -> None:
        """Let go of the connection."""
        if self._consumer is not None:
            self._consumer.close()


class _State:
    """What the records read so far amount to."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._announced: dict[str, Announcement] = {}
        self._filled: set[tuple[str, int]] = set()
        self._used: dict[str, Use] = {}
        self._dropping: dict[str, None] = {}
        self._items: dict[tuple[str, int], Offsets] = {}

    @property
    def log(self) -> ReleaseLog:
        return ReleaseLog(
            tuple(self._announced.values()),
            frozenset(self._filled),
            tuple(self._used.values()),
            tuple(self._dropping),
            dict(self._items),
        )

    def apply(self, record: Any) -> None:
        key = record.key.decode() if record.key else ""
        if key.startswith(_FILLED):
            release, _, number = key.removeprefix(_FILLED).rpartition("/")
            change = self._filled.discard if record.value is None else self._filled.add
            change((release, int(number)))
        elif key.startswith(_RELEASE):
            self._announced.pop(key, None)
            if record.value is not None:
                self._announced[key] = self._parsed(Announcement, record)
        elif key.startswith(_USED):
            self._used.pop(key, None)
            if record.value is not None:
                self._used[key] = self._parsed(Use, record)
        elif key.startswith(_DROPPING):
            release = key.removeprefix(_DROPPING)
            self._dropping.pop(release, None)
            if record.value is not None:
                self._dropping[release] = None
        elif key.startswith(_ITEMS):
            release, _, number = key.removeprefix(_ITEMS).rpartition("/")
            self._items.pop((release, int(number)), None)
            if record.value is not None:
                self._items[release, int(number)] = self._parsed(_ItemsSeen, record).offsets

    def _parsed(self, kind: type[_Record], record: Any) -> _Record:
        try:
            return kind.model_validate_json(record.value)
        except ValidationError as exc:
            raise Misconfigured(
                f"{self._settings.releases_topic}[0] at offset {record.offset} is no"
                f" {kind.__name__.lower()} of a release:"
                f" {exc.errors(include_url=False)[0]['msg']}; publish the release again"
            ) from exc


def announce(settings: KafkaSettings, announcement: Announcement) -> None:
    """Tell workers of a release; returns once Kafka has it."""
    key = f"{_RELEASE}{announcement.release}".encode()
    _write(settings, [(key, announcement.model_dump_json().encode())])


def withdraw(settings: KafkaSettings, release: str) -> None:
    """Have workers let go of a release; they take their reports of it back.

    Its collections are to be dropped next, and `note_dropped` is to be called then.
    """
    _write(
        settings,
        [
            (f"{_DROPPING}{release}".encode(), b"{}"),
            (f"{_RELEASE}{release}".encode(), None),
            (_used_key(release), None),
        ],
    )


def note_dropped(settings: KafkaSettings, release: str) -> None:
    """Note that a withdrawn release has no collections any more, or is announced again."""
    _write(settings, [(f"{_DROPPING}{release}".encode(), None)])


def note_use(settings: KafkaSettings, use: Use) -> None:
    """Note that readers were pointed at a release."""
    _write(settings, [(_used_key(use.release), use.model_dump_json().encode())])


def _used_key(release: str) -> bytes:
    return f"{_USED}{release}".encode()


def filled_reports(release: str, partitions: Iterable[int]) -> list[tuple[bytes, bytes]]:
    """Keys and values that report these partitions' interests to be in a release's collection."""
    return [(_filled_key(release, partition), b"{}") for partition in partitions]


def withdrawn_reports(reports: Iterable[tuple[str, int]]) -> list[tuple[bytes, None]]:
    """Keys and no values: their collections will no longer be kept up to date."""
    return [(key, None) for one in reports for key in (_filled_key(*one), _items_key(*one))]


def item_reports(seen: Mapping[tuple[str, int], Offsets]) -> list[tuple[bytes, bytes]]:
    """Keys and values that say up to where items are taken into account."""
    notes = {report: _ItemsSeen(offsets=dict(offsets)) for report, offsets in seen.items()}
    return [(_items_key(*one), note.model_dump_json().encode()) for one, note in notes.items()]


def take_back(settings: KafkaSettings, reports: set[tuple[str, int]]) -> None:
    """Withdraw reports, whoever owns their partitions."""
    _write(settings, withdrawn_reports(reports))


def _items_key(release: str, partition: int) -> bytes:
    return f"{_ITEMS}{release}/{partition}".encode()


def _filled_key(release: str, partition: int) -> bytes:
    return f"{_FILLED}{release}/{partition}".encode()


def _write(settings: KafkaSettings, records: Sequence[tuple[bytes, bytes | None]]) -> None:
    if not records:
        return
    with translated("writing to the releases topic", settings):
        client: KafkaProducer = producer(settings)
        try:
            sent = [client.send(settings.releases_topic, key=k, value=v) for k, v in records]
            for future in sent:
                future.get(timeout=_TIMEOUT_S)
        finally:
            client.close(timeout=_TIMEOUT_S)
