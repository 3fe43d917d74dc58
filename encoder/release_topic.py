"""The releases topic: which releases were announced, and which partitions are filled for them.

Compacted, one partition. An announcement has the key `release/<name>`. A report has the key
`filled/<name>/<partition>` and says that the interests of every window on that partition are in
the release's collection, and are kept up to date by the partition's owner. An owner that serves
another release takes the report back first, since it will not keep that collection up to date.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kafka import KafkaProducer, TopicPartition
from pydantic import BaseModel, ConfigDict, ValidationError

from encoder.errors import Misconfigured
from encoder.kafka_client import producer, read_to_end, translated
from encoder.settings import KafkaSettings

_RELEASE: Final = "release/"
_FILLED: Final = "filled/"
_TIMEOUT_S: Final = 30.0


class Announcement(BaseModel):
    """A release that workers may serve: its name and where its folder is (any fsspec URL)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    release: str
    url: str


@dataclass(frozen=True, slots=True)
class ReleaseLog:
    """The releases topic, read to its end.

    Attributes:
        announced: oldest first; a release announced again counts as newest.
        filled: (release, partition) pairs that are reported and not taken back.
    """

    announced: tuple[Announcement, ...]
    filled: frozenset[tuple[str, int]]

    @property
    def newest(self) -> Announcement | None:
        """The last release announced."""
        return self.announced[-1] if self.announced else None

    def is_filled(self, release: str, partitions: int) -> bool:
        """Whether every partition is reported for the release."""
        return all((release, partition) in self.filled for partition in range(partitions))


def read_releases(settings: KafkaSettings) -> ReleaseLog:
    """Read the whole topic.

    Raises:
        Misconfigured: a record is no announcement; names its offset.
        Unavailable: Kafka does not answer.
    """
    announced: dict[str, Announcement] = {}
    filled: set[tuple[str, int]] = set()
    partition = TopicPartition(settings.releases_topic, 0)
    with translated("reading releases", settings):
        for records in read_to_end(settings, [partition], timeout_s=_TIMEOUT_S):
            for record in records:
                key = record.key.decode() if record.key else ""
                if key.startswith(_FILLED):
                    release, _, number = key.removeprefix(_FILLED).rpartition("/")
                    (filled.discard if record.value is None else filled.add)((release, int(number)))
                elif key.startswith(_RELEASE):
                    announced.pop(key, None)
                    if record.value is not None:
                        announced[key] = _announcement(record, settings)
    return ReleaseLog(tuple(announced.values()), frozenset(filled))


def announce(settings: KafkaSettings, announcement: Announcement) -> None:
    """Tell workers of a release; returns once Kafka has it."""
    key = f"{_RELEASE}{announcement.release}".encode()
    _write(settings, [(key, announcement.model_dump_json().encode())])


def filled_reports(release: str, partitions: Iterable[int]) -> list[tuple[bytes, bytes]]:
    """Keys and values that report these partitions' interests to be in a release's collection."""
    return [(_filled_key(release, partition), b"{}") for partition in partitions]


def take_back(settings: KafkaSettings, reports: set[tuple[str, int]]) -> None:
    """Withdraw reports, since their collections will no longer be kept up to date."""
    _write(settings, [(_filled_key(release, partition), None) for release, partition in reports])


def _filled_key(release: str, partition: int) -> bytes:
    return f"{_FILLED}{release}/{partition}".encode()


def _write(settings: KafkaSettings, records: list[tuple[bytes, bytes | None]]) -> None:
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


def _announcement(record: object, settings: KafkaSettings) -> Announcement:
    try:
        return Announcement.model_validate_json(record.value)  # type: ignore[attr-defined]
    except ValidationError as exc:
        raise Misconfigured(
            f"{settings.releases_topic}[0] at offset {record.offset}"  # type: ignore[attr-defined]
            f" is no announcement of a release: {exc.errors(include_url=False)[0]['msg']};"
            " publish the release again"
        ) from exc
