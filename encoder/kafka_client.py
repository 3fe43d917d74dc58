"""How clients of Kafka are made from the settings, and a topic read to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import FencedInstanceIdError, KafkaError, ProducerFencedError

from encoder.errors import Misconfigured, Unavailable
from encoder.kafka_net_client import REFUSALS, net_client, tls_error
from encoder.records import Record, RecordBlock, hand_out_blocks, hand_out_records
from encoder.settings import KafkaSettings
from encoder.tls import TlsFiles

_POLL_MS = 200
_POLL_RECORDS = 10_000
_POLL_BLOCKS: Final = 16  # of up to 256 KiB each, as workers write them
# kafka-python copies what arrives several times over, which is faster while it fits a cache.
_BLOCK_FETCH_BYTES: Final[dict[str, Any]] = {
    "max_partition_fetch_bytes": 1024 * 1024,
    "fetch_max_bytes": 4 * 1024 * 1024,
}
_LONGEST_RECONNECT_PAUSE_MS: Final = 1_000  # kafka-python's 30 s outlast a broker's restart

MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
"""Largest record we write. A dead letter is the original and its headers, so it must be able to
exceed what the clicks topic takes."""


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every client needs: where the brokers are and how to prove who we are.

    Raises:
        Misconfigured: a file that TLS needs cannot be used.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "security_protocol": settings.security_protocol,
        "kafka_client": net_client,
        "reconnect_backoff_max_ms": _LONGEST_RECONNECT_PAUSE_MS,
    }
    if settings.security_protocol.endswith("SSL"):
        # Made here, because kafka-python takes a missing file for a broker that is down.
        config["ssl_context"] = _tls_files(settings).context()
    if settings.sasl_mechanism is not None and settings.sasl_password is not None:
        config["sasl_mechanism"] = settings.sasl_mechanism
        config["sasl_plain_username"] = settings.sasl_username
        config["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return config


def _tls_files(settings: KafkaSettings) -> TlsFiles:
    password = settings.ssl_password.get_secret_value() if settings.ssl_password else None
    return TlsFiles(
        "MINDSTREAM_KAFKA__SSL_",
        settings.ssl_cafile,
        settings.ssl_certfile,
        settings.ssl_keyfile,
        password,
    )


@contextmanager
def translated(doing: str, settings: KafkaSettings) -> Iterator[None]:
    """Turn kafka-python's exceptions into ours, saying what was being done and where.

    Raises:
        Misconfigured: the broker refused our credentials, rights or name, or we its certificate.
        Unavailable: any other failure of Kafka.
    """
    try:
        yield
    except (ProducerFencedError, FencedInstanceIdError) as exc:
        raise Misconfigured(
            f"{doing}: another worker has taken this one's name ({exc!r});"
            " MINDSTREAM_WORKER__INSTANCE_ID must be different for every worker that runs"
        ) from exc
    except REFUSALS as exc:
        raise Misconfigured(
            f"{doing}: Kafka at {settings.bootstrap_servers} refused: {exc!r};"
            " check MINDSTREAM_KAFKA__SASL_*, MINDSTREAM_KAFKA__SSL_* and the broker's ACLs"
        ) from exc
    except KafkaError as exc:
        if error := tls_error(exc):
            why = _tls_files(settings).explain(error, settings.bootstrap_servers)
            if why:
                raise Misconfigured(f"{doing}: Kafka: {why}") from exc
        raise Unavailable(
            f"{doing}: Kafka at {settings.bootstrap_servers} failed: {exc!r}; is the broker up, and"
            " are MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS and MINDSTREAM_KAFKA__SECURITY_PROTOCOL those"
            " of one of its listeners?"
        ) from exc


@contextmanager
def admin_client(settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """An admin client, closed at the end."""
    client = KafkaAdminClient(**client_config(settings))
    try:
        yield client
    finally:
        client.close()


def producer(settings: KafkaSettings, **config: Any) -> KafkaProducer:
    """A producer; `config` is kafka-python's."""
    return KafkaProducer(
        **client_config(settings),
        allow_auto_create_topics=False,
        acks="all",
        max_request_size=MAX_RECORD_BYTES,
        **config,
    )


@contextmanager
def reader(
    settings: KafkaSettings, isolation: str = "read_committed", **config: Any
) -> Iterator[KafkaConsumer]:
    """As `open_reader`, closed at the end."""
    consumer = open_reader(settings, isolation, **config)
    try:
        yield consumer
    finally:
        consumer.close()


def open_reader(
    settings: KafkaSettings, isolation: str = "read_committed", **config: Any
) -> KafkaConsumer:
    """A consumer outside any group, for reading partitions from their beginning.

    `config` is kafka-python's.
    """
    consumer = KafkaConsumer(
        **client_config(settings),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        isolation_level=isolation,
        **{"max_partition_fetch_bytes": 8 * 1024 * 1024, **config},
    )
    hand_out_records(consumer)
    return consumer


def end_offsets(settings: KafkaSettings, partitions: Sequence[TopicPartition]) -> dict[Any, int]:
    """The offsets after the last record written, whether or not its transaction has ended."""
    with reader(settings, "read_uncommitted") as consumer:
        ends: dict[Any, int] = consumer.end_offsets(partitions)
        return ends


def read_to_end(
    settings: KafkaSettings,
    partitions: Sequence[TopicPartition],
    *,
    timeout_s: float,
    start: dict[Any, int] | None = None,
) -> Iterator[list[Record]]:
    """Everything committed in the partitions.

    Reads up to the last record written before the call, also where that record's transaction is
    still open: it waits for the transaction to commit or abort, so that nothing that a committed
    offset stands for can be missed.

    Args:
        settings: how to reach Kafka.
        partitions: what to read.
        timeout_s: the longest wait without any progress.
        start: offsets to start from, per partition; the beginning where absent.

    Raises:
        Unavailable: no progress within `timeout_s`.
    """
    if not partitions:
        return
    ends = end_offsets(settings, partitions)
    with reader(settings) as consumer:
        consumer.assign(partitions)
        for partition, offset in (start or {}).items():
            consumer.seek(partition, offset)
        yield from _polled_to(ends, consumer, _POLL_RECORDS, timeout_s)


def read_blocks_to_end(
    settings: KafkaSettings,
    partitions: Sequence[TopicPartition],
    *,
    timeout_s: float,
    start: dict[Any, int] | None = None,
    ends: dict[Any, int] | None = None,
) -> Iterator[list[RecordBlock]]:
    """As `read_to_end`, and faster: blocks instead of records.

    With `ends`, offsets per partition, it reads at least what lies before them.
    """
    if not partitions:
        return
    ends = ends or end_offsets(settings, partitions)
    with reader(settings, **_BLOCK_FETCH_BYTES) as consumer:
        hand_out_blocks(consumer)
        consumer.assign(partitions)
        for partition, offset in (start or {}).items():
            consumer.seek(partition, offset)
        yield from _polled_to(ends, consumer, _POLL_BLOCKS, timeout_s)


def _polled_to(
    ends: dict[Any, int], consumer: KafkaConsumer, at_most: int, timeout_s: float
) -> Iterator[list[Any]]:
    positions = {partition: consumer.position(partition) for partition in ends}
    progressed = time.monotonic()
    while any(positions[partition] < end for partition, end in ends.items()):
        yield from consumer.poll(timeout_ms=_POLL_MS, max_records=at_most).values()
        moved = {partition: consumer.position(partition) for partition in ends}
        if moved != positions:
            positions, progressed = moved, time.monotonic()
        elif time.monotonic() - progressed > timeout_s:
            behind = next(
                partition for partition, end in ends.items() if positions[partition] < end
            )
            raise Unavailable(
                f"reading {behind.topic}[{behind.partition}] stopped at offset"
                f" {positions[behind]} of {ends[behind]} for {timeout_s:g} s"
            )
