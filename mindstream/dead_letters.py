"""Puts dead letters back on the clicks topic, each at most once.

A letter's record and its receipt are written in one transaction, and a second run fences the first
before it reads which letters have receipts. So it may be killed at any point and started again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, Literal

from kafka import KafkaProducer
from kafka.errors import InvalidProducerEpochError, KafkaError, ProducerFencedError

from encoder.click import RejectedClick, parse_record
from encoder.dead_letter_topic import (
    DeadLetter,
    Receipt,
    pending_letters,
    put_back_offsets,
    read_dead_letters,
    sendable,
)
from encoder.errors import Misconfigured, Unavailable
from encoder.kafka_client import producer, translated
from encoder.settings import Settings
from mindstream.dead_letter_lines import MendedLetter, source_of

_CHUNK_LETTERS: Final = 200

ReplayStep = Literal["sent", "filled", "committed"]


@dataclass(slots=True)
class ReplayedLetters:
    """What became of the letters.

    Attributes:
        put_back: on the clicks topic now; with a dry run, those that would be.
        put_back_before: named in the file, but an earlier run had put them back.
        left: by reason, those that would be rejected again.
    """

    put_back: int = 0
    put_back_before: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def report(self, *, dry_run: bool = False) -> str:
        """One line."""
        told = [f"{self.put_back} letters {'would be ' * dry_run}put back"]
        if self.put_back_before:
            told.append(f"{self.put_back_before} had been put back before")
        if self.left:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in self.left.most_common())
            told.append(f"{self.left.total()} left, since they would be rejected again ({reasons})")
        return "; ".join(told)


@dataclass(frozen=True, slots=True)
class _Mended:
    """A letter whose record the contract accepts.

    Attributes:
        partition: where its record goes; None where the key's hash decides.
    """

    letter_offset: int
    letter: DeadLetter
    partition: int | None


def replay_letters(
    settings: Settings,
    *,
    reason: str | None = None,
    mended: Mapping[int, MendedLetter] | None = None,
    source: str = "",
    dry_run: bool = False,
    after_step: Callable[[ReplayStep], None] = lambda step: None,
) -> ReplayedLetters:
    """Put those letters back that the contract accepts now.

    A record goes back with its timestamp, so that a tombstone reaches no further than it did, and
    to its partition; where its key was changed, to the one that the key's hash gives.

    Args:
        settings: the topics, and how far ahead clicks may lie.
        reason: only letters that were rejected for this reason.
        mended: only these letters, changed like this; by offset.
        source: the file that `mended` is from.
        dry_run: write nothing, and disturb no other run.
        after_step: called when a step is done; fault tests crash in it.

    Raises:
        Misconfigured: `mended` names a letter that is not there. Nothing was written.
        Unavailable: Kafka does not answer, or another run began meanwhile. What was put back has
            its receipt: run it again.
    """
    done = ReplayedLetters()
    if dry_run:
        letters = _letters(settings, reason, mended, source, done)
        done.put_back = sum(1 for _ in _acceptable(settings, letters, done))
        return done
    with _only_run(settings) as client:
        letters = _letters(settings, reason, mended, source, done)
        accepted = _acceptable(settings, letters, done)
        while chunk := list(islice(accepted, _CHUNK_LETTERS)):
            _put_back(settings, client, chunk, after_step)
            done.put_back += len(chunk)
    return done


def _letters(
    settings: Settings,
    reason: str | None,
    mended: Mapping[int, MendedLetter] | None,
    source: str,
    done: ReplayedLetters,
) -> Iterator[tuple[int, DeadLetter, int | None]]:
    """Pending letters as they are to go back: offset, letter, partition."""
    if mended is None:
        for offset, letter in pending_letters(settings.kafka):
            if reason in (None, letter.reason):
                yield offset, letter, letter.partition
        return
    put_back = put_back_offsets(settings.kafka)
    for offset, letter in sorted(_named(settings, mended, source).items()):
        change = mended[offset]
        if reason not in (None, letter.reason):
            continue
        if offset in put_back:
            done.put_back_before += 1
            continue
        changed = replace(letter, key=change.key, value=change.value, headers=change.headers)
        yield offset, changed, letter.partition if change.key == letter.key else None


def _named(
    settings: Settings, mended: Mapping[int, MendedLetter], source: str
) -> dict[int, DeadLetter]:
    """The letters that were mended, as they lie on the topic."""
    kafka = settings.kafka
    letters = {
        offset: found
        for offset, found in read_dead_letters(kafka)
        if offset in mended and isinstance(found, DeadLetter)
    }
    for offset, change in mended.items():
        letter = letters.get(offset)
        if letter is None or source_of(letter) != change.source:
            topic, partition, at, _ = change.source
            raise Misconfigured(
                f"{source}, line {change.line}: {kafka.dead_letters_topic} has no letter at offset"
                f" {offset} that is of {topic}[{partition}] at offset {at} with that timestamp; it"
                " may have expired, or the file be of another topic. `mindstream dead-letters"
                " --json` lists those that are there"
            )
        if letter.topic != kafka.clicks_topic:
            raise Misconfigured(
                f"{source}, line {change.line}: the letter is of {letter.topic}, but"
                f" MINDSTREAM_KAFKA__CLICKS_TOPIC is {kafka.clicks_topic}"
            )
    return letters


def _acceptable(
    settings: Settings,
    letters: Iterator[tuple[int, DeadLetter, int | None]],
    done: ReplayedLetters,
) -> Iterator[_Mended]:
    max_future_ms = int(settings.worker.max_future_s * 1000)
    for offset, letter, partition in letters:
        try:
            parse_record(letter.key, letter.value, letter.timestamp_ms, max_future_ms=max_future_ms)
        except RejectedClick as exc:
            done.left[exc.reason] += 1
            continue
        yield _Mended(offset, letter, partition)


@contextmanager
def _only_run(settings: Settings) -> Iterator[KafkaProducer]:
    """A producer whose transactions no other run's can be among.

    Any failure ends the run: kafka-python may give a fenced producer a new identity by itself, and
    what we know of receipts would then be out of date.
    """
    worker = settings.worker
    with translated("putting dead letters back", settings.kafka):
        client = producer(
            settings.kafka,
            # No worker can have this name: an instance id has no slash.
            transactional_id=f"{worker.group_id}/replay",
            transaction_timeout_ms=int(worker.transaction_timeout_s * 1000),
            compression_type="lz4",
            max_block_ms=int(worker.step_budget_s * 1000),
            delivery_timeout_ms=int(worker.step_budget_s * 1000),
            request_timeout_ms=int(worker.step_budget_s * 500),
        )
        try:
            client.init_transactions()
            yield client
        except (ProducerFencedError, InvalidProducerEpochError) as exc:
            raise Unavailable(
                f"another `mindstream replay` of group {worker.group_id} has taken over; what this"
                " one put back has its receipts, and the other one does the rest"
            ) from exc
        finally:
            with suppress(KafkaError):  # whatever it still holds was given up
                client.close(timeout=worker.stop_budget_s)


def _put_back(
    settings: Settings,
    client: KafkaProducer,
    chunk: list[_Mended],
    after_step: Callable[[ReplayStep], None],
) -> None:
    kafka, budget_s = settings.kafka, settings.worker.step_budget_s
    client.begin_transaction()
    try:
        sent: list[Any] = []
        for one in chunk:
            letter = one.letter
            sent.append(
                client.send(
                    kafka.clicks_topic,
                    key=letter.key,
                    value=letter.value,
                    headers=sendable(letter.headers),
                    timestamp_ms=letter.timestamp_ms,
                    partition=one.partition,
                )
            )
            receipt = Receipt(one.letter_offset)
            sent.append(client.send(kafka.dead_letters_topic, **receipt.to_record()))
            after_step("sent")
        client.flush(timeout=budget_s)
        for future in sent:
            future.get(timeout=budget_s)
        after_step("filled")
    except BaseException:
        with suppress(KafkaError):  # what ended the chunk says more
            client.abort_transaction()
        raise
    client.commit_transaction()
    after_step("committed")
