"""Bad clicks on a real broker: set aside whole, each once, and not without end."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from kafka import TopicPartition

from encoder.click import Click, RejectedClick, parse_record
from encoder.kafka_client import read_to_end
from mindstream.audit import Audit
from mindstream.environment import environment_of
from mindstream.exit_codes import EXIT_MISCONFIGURED
from mindstream.group import committed_offsets
from tests.deployment import DEADLINE_S, T0, Deployment
from tests.fuzzed_clicks import FuzzedRecord, fuzzed_records, produce_fuzzed

FUZZED_RECORDS = 10_000

Kept = tuple[object, ...]
"""Key, value, headers and timestamp of a record, its place on the clicks topic, and a reason."""


def allow_rejected(deployment: Deployment, share: float) -> None:
    worker = deployment.settings.worker.model_copy(update={"max_rejected_share": share})
    deployment.settings = deployment.settings.model_copy(update={"worker": worker})


def rejected_on_topic(deployment: Deployment) -> list[Kept]:
    """What the contract rejects of what lies on the clicks topic."""
    kafka = deployment.settings.kafka
    partitions = [TopicPartition(kafka.clicks_topic, n) for n in range(deployment.partitions)]
    max_future_ms = int(deployment.settings.worker.max_future_s * 1000)
    rejected: list[Kept] = []
    for records in read_to_end(kafka, partitions, timeout_s=DEADLINE_S):
        for record in records:
            key, value, at = record.key, record.value, record.timestamp
            try:
                parse_record(key, value, at, max_future_ms=max_future_ms)
            except RejectedClick as exc:
                place = (kafka.clicks_topic, record.partition, record.offset)
                rejected.append((key, value, tuple(record.headers), at, *place, exc.reason))
    return rejected


def set_aside(deployment: Deployment) -> list[Kept]:
    names = ("key", "value", "headers", "timestamp_ms", "topic", "partition", "offset", "reason")
    return [tuple(letter[name] for name in names) for letter in deployment.dead_letters()]


def assert_all_are_right(deployment: Deployment) -> Audit:
    """The store is the fold, and every rejected record was set aside once, and no other."""
    audit = deployment.audit()
    assert audit.differences == 0, audit.report()
    assert Counter(set_aside(deployment)) == Counter(rejected_on_topic(deployment))
    return audit


def test_ten_thousand_fuzzed_records_leave_the_fold_and_exact_dead_letters(
    deployment: Deployment,
) -> None:
    """Every way to break a click that we know, and random damage, among as many good ones."""
    allow_rejected(deployment, 1)
    deployment.settings = deployment.settings.model_copy(
        update={"worker": deployment.settings.worker.model_copy(update={"max_batch_clicks": 512})}
    )
    produce_fuzzed(deployment.settings, fuzzed_records(FUZZED_RECORDS, seed=20))
    deployment.consume_all()
    audit = assert_all_are_right(deployment)
    assert audit.clicks > FUZZED_RECORDS / 4
    assert len(audit.rejected) > FUZZED_RECORDS / 4


def click(**fields: object) -> bytes:
    return json.dumps({"user_id": "u", "item_id": "item-1", "timestamp": T0} | fields).encode()


def raw(field: str) -> bytes:
    return b'{"user_id":"u","item_id":"item-1","timestamp":%d,%s}' % (T0, field.encode())


BAD: dict[str, tuple[bytes | None, bytes | None]] = {
    "not_json megabyte": (b"u", b"x" * 1_000_000),
    "not_json nothing": (b"u", b""),
    "not_json UTF-8": (b"u", b'{"user_id":"\xff\xfe"}'),
    "not_json nesting": (b"u", raw('"page":' + "[" * 9000 + "]" * 9000)),
    "not_json surrogate": (b"u", raw('"page":"\\ud800"')),
    "not_json number": (b"u", raw('"page":' + "9" * 9000)),
    "not_json byte": (b"u", raw('"page":"\0"')),
    "invalid_field NaN": (b"u", click(timestamp=float("nan"))),
    "invalid_field infinity": (b"u", click(timestamp=float("inf"))),
    "invalid_field seconds": (b"u", click(timestamp=T0 // 1000)),
    "invalid_field microseconds": (b"u", click(timestamp=T0 * 1000)),
    "invalid_field integer": (b"u", click(timestamp=10**40)),
    "invalid_field no item": (b"u", click(item_id="")),
    "invalid_field huge item": (b"u", click(item_id="i" * 500_000)),
    "invalid_field huge user": (b"u" * 500_000, click(user_id="u" * 500_000)),
    "invalid_field no user": (b"", click(user_id="")),
    "invalid_field null byte": (b"u", click(item_id="a\0b")),
    "invalid_field types": (b"u", click(user_id=1, item_id=[], timestamp={})),
    "invalid_field duplicate": (b"u", raw('"timestamp":1')),
    "key_mismatch duplicate": (b"u", raw('"user_id":"v"')),
    "key_mismatch": (b"v", click()),
    "no_key": (None, click()),
    "key_not_utf8": (b"\xff", click()),
    "key_not_utf8 tombstone": (b"\xff", None),
    "future_timestamp": (b"u", click(timestamp=T0 + 10**10)),
    "future_timestamp far": (b"u", click(timestamp="9999-12-31T23:59:59Z")),
}


def records_of(pairs: Sequence[tuple[bytes | None, bytes | None]]) -> list[FuzzedRecord]:
    headers = [("trace", b"\x00\xff"), ("trace", b""), ("mindstream.offset", b"not ours")]
    return [(key, value, headers, T0) for key, value in pairs]


def test_every_kind_of_bad_click_is_set_aside_whole(deployment: Deployment) -> None:
    """With reason, source, headers and original bytes; the clicks around are applied."""
    allow_rejected(deployment, 0)  # not judged yet: they are far fewer than a thousand
    good = [
        (b"u", click(item_id="unknown to any release")),
        (b"u", raw('"page":NaN')),
        (b"u", raw('"item_id":"item-2"')),
        (b"u", click(item_id="item-3", page="x" * 900_000)),
        (b"u", None),
        (b"v", click(user_id="v", timestamp="2023-11-14T22:13:20Z")),
    ]
    produce_fuzzed(deployment.settings, records_of([*good, *BAD.values()]))
    deployment.consume_all()
    audit = assert_all_are_right(deployment)
    assert audit.clicks == len(good) - 1
    letters = deployment.dead_letters()
    expected = Counter((name.split()[0], key, value) for name, (key, value) in BAD.items())
    assert Counter((one["reason"], one["key"], one["value"]) for one in letters) == expected
    for letter in letters:
        assert letter["headers"] == tuple(records_of([(b"", b"")])[0][2])
        assert letter["detail"]


def test_too_large_a_share_stops_the_worker_before_anything_of_the_batch(
    deployment: Deployment,
) -> None:
    """Exit code 78 and a message; once the limit is raised the next one goes on, without a gap."""
    good = [Click(f"u{n}", "item-1", T0 + n).to_record() for n in range(900)]
    bad = [(b"broken-%d" % n, b"{") for n in range(600)]
    deployment.produce_raw([*good, *bad])
    done = subprocess.run(
        [sys.executable, "-m", "mindstream", "worker"],
        env={**os.environ, **environment_of(deployment.settings)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == EXIT_MISCONFIGURED, done.stderr
    said = done.stderr.replace("\n", " ")
    assert "of the newest 1000 records" in said
    assert "MINDSTREAM_WORKER__MAX_REJECTED_SHARE (0.25;" in said
    assert "Traceback" not in said
    committed = committed_offsets(deployment.settings, deployment.partitions)
    told = re.search(r"\.clicks\[(\d)\] at offset (\d+)", said)
    assert told
    assert int(told[2]) >= committed[int(told[1])], "a record of the batch that was refused"
    before = [one for one in rejected_on_topic(deployment) if int(str(one[6])) < at(one, committed)]
    assert Counter(set_aside(deployment)) == Counter(before)
    allow_rejected(deployment, 0.7)
    deployment.consume_all()
    assert_all_are_right(deployment)
    assert len(set_aside(deployment)) == len(bad)


def at(one: Kept, committed: dict[int, int]) -> int:
    return committed.get(int(str(one[5])), 0)


class RawName(str):
    """A header's name that is written as a byte that is no UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xff" + super().encode(encoding, errors)


def test_a_header_name_that_is_no_utf_8_does_not_end_the_partition(deployment: Deployment) -> None:
    """kafka-python would not get past it; the records around it are read as ever."""
    headers = [("before", b"1"), (RawName("name"), b"2"), ("after", b"3")]
    records = [(b"u", click(item_id=f"item-{n}"), headers, T0 + n) for n in range(1, 4)]
    produce_fuzzed(deployment.settings, [*records, (b"u", b"{", headers, T0)])
    deployment.consume_all()
    (letter,) = deployment.dead_letters()
    assert letter["headers"] == (("before", b"1"), ("\\xffname", b"2"), ("after", b"3"))
    assert assert_all_are_right(deployment).clicks == 3


def test_a_tombstone_without_a_time_is_rejected(deployment: Deployment) -> None:
    """It would forget nothing, and whoever wrote it would believe that it did."""
    produce_fuzzed(deployment.settings, [(b"u", None, [], -1), (b"u", None, [], 0)])
    deployment.consume_all()
    for letter in deployment.dead_letters():
        assert (letter["reason"], letter["key"], letter["value"]) == ("invalid_field", b"u", None)
    assert len(assert_all_are_right(deployment).rejected) == 2
