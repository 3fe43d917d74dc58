"""Dead letters are listed, mended and put back, each at most once."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.partitioner import murmur2

from encoder.click import Click
from encoder.dead_letter_topic import DeadLetter, pending_letters
from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import InterestIndex
from encoder.kafka_client import read_to_end
from mindstream.dead_letter_lines import letter_line, read_mended
from mindstream.dead_letters import ReplayStep, replay_letters
from mindstream.environment import environment_of
from mindstream.exit_codes import EXIT_MISCONFIGURED
from tests.deployment import DEADLINE_S, T0, Deployment
from tests.fuzzed_clicks import FuzzedRecord, produce_fuzzed

HOUR_MS = 3_600_000
HEADERS = [("trace", b"\x00\xff"), ("mindstream.topic", b"not ours")]


def change_worker(deployment: Deployment, **settings: float) -> None:
    worker = deployment.settings.worker.model_copy(update=settings)
    deployment.settings = deployment.settings.model_copy(update={"worker": worker})


def on_topic(deployment: Deployment) -> list[Any]:
    """Every record of the clicks topic."""
    kafka = deployment.settings.kafka
    partitions = [TopicPartition(kafka.clicks_topic, n) for n in range(deployment.partitions)]
    polled = read_to_end(kafka, partitions, timeout_s=DEADLINE_S)
    return [record for records in polled for record in records]


def pending(deployment: Deployment) -> dict[int, DeadLetter]:
    return dict(pending_letters(deployment.settings.kafka))


def ahead(n: int) -> FuzzedRecord:
    """A click whose time is an hour after its record's."""
    key, value = Click(f"u{n % 20}", f"item-{n % 50 + 1}", T0 + HOUR_MS + n).to_record()
    return key, value, HEADERS, T0 + n


def set_aside(deployment: Deployment, records: Sequence[FuzzedRecord]) -> None:
    change_worker(deployment, max_rejected_share=1)
    produce_fuzzed(deployment.settings, records)
    deployment.consume_all()
    assert len(pending(deployment)) == len(records)


def assert_each_was_put_back_once(deployment: Deployment, records: int) -> None:
    """Same key, value, headers, timestamp and partition as the record that was rejected."""
    found = Counter(
        (one.key, one.value, tuple(one.headers), one.timestamp, one.partition)
        for one in on_topic(deployment)
    )
    assert len(found) == records
    assert set(found.values()) == {2}
    assert pending(deployment) == {}


def mindstream(
    deployment: Deployment, *arguments: str, given: str | None = None, code: int = 0
) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mindstream", *arguments],
        env={**os.environ, **environment_of(deployment.settings)},
        input=given,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr.replace("\n", " ")


def test_letters_mended_by_a_setting_are_put_back_once(deployment: Deployment) -> None:
    """As they lay there; those that would be rejected again are left, and told by reason."""
    set_aside(deployment, [ahead(1), ahead(2), (b"u", b"{", [], T0)])
    done = replay_letters(deployment.settings)
    assert (done.put_back, done.left) == (0, {"future_timestamp": 2, "not_json": 1})
    assert "3 left, since they would be rejected again (future_timestamp: 2, not" in done.report()
    change_worker(deployment, max_future_s=2 * 3600)
    done = replay_letters(deployment.settings, dry_run=True)
    assert done.report(dry_run=True).startswith("2 letters would be put back; 1 left")
    assert replay_letters(deployment.settings, reason="not_json").put_back == 0
    assert len(on_topic(deployment)) == 3
    for put_back in (2, 0):
        done = replay_letters(deployment.settings)
        assert (done.put_back, done.left) == (put_back, {"not_json": 1})
    returned = Counter((one.value, one.timestamp, *one.headers) for one in on_topic(deployment))
    assert returned[(ahead(1)[1], T0 + 1, *HEADERS)] == 2
    assert [letter.reason for letter in pending(deployment).values()] == ["not_json"]
    deployment.consume_all()
    audit = deployment.audit()
    assert audit.differences == 0, audit.report()
    assert audit.users == 2
    assert len(pending(deployment)) == 1
    assert len(deployment.dead_letters()) == 3, "receipts are no letters"


def test_letters_mended_by_hand_are_put_back_through_the_commands(deployment: Deployment) -> None:
    """What one command prints, a person changes and the other takes; a repetition does nothing."""
    good = Click("right", "item-7", T0).to_record()[1]
    set_aside(
        deployment,
        [(b"wrong", good, HEADERS, T0), (b"\xff", b"\xfe", [], T0), (b"x", b"{", [], T0)],
    )
    listed = mindstream(deployment, "dead-letters", "--reason", "key_mismatch", "--json")
    (line,) = map(json.loads, listed.splitlines())
    line["key"] = "right"
    mended = json.dumps(line) + "\n"
    assert "1 letters put back" in mindstream(deployment, "replay", "--from", "-", given=mended)
    file = deployment.folder / "mended.jsonl"
    file.write_text(mended)
    told = mindstream(deployment, "replay", "--from", str(file))
    assert told == "0 letters put back; 1 had been put back before\n"
    table = mindstream(deployment, "dead-letters")
    assert "key_not_utf8" in table
    assert "key_mismatch" not in table
    said = mindstream(
        deployment, "replay", "--from", "-", given=mended + "{", code=EXIT_MISCONFIGURED
    )
    assert "standard input, line 2 is no dead letter" in said
    (back,) = (record for record in on_topic(deployment) if record.key == b"right")
    assert (back.value, tuple(back.headers), back.timestamp) == (good, tuple(HEADERS), T0)
    assert back.partition == (murmur2(b"right") & 0x7FFFFFFF) % deployment.partitions
    deployment.consume_all()
    assert deployment.audit().differences == 0
    assert deployment.audit().users == 1


def test_a_file_of_another_topic_puts_nothing_back(deployment: Deployment) -> None:
    """Every line is looked up before the first is put back."""
    set_aside(deployment, [ahead(1), ahead(2)])
    change_worker(deployment, max_future_s=2 * 3600)
    (first, letter), (second, other) = pending(deployment).items()
    lines = [letter_line(first, letter), letter_line(second, letter)]
    with pytest.raises(Misconfigured, match=rf"mended, line 2: .* offset {second} that is of"):
        replay_letters(deployment.settings, mended=read_mended(lines, "f"), source="mended")
    absent = letter_line(10**9, other)
    with pytest.raises(Misconfigured, match=r"mended, line 1: .* no letter at offset 1000000000"):
        replay_letters(deployment.settings, mended=read_mended([absent], "f"), source="mended")
    assert len(on_topic(deployment)) == 2
    assert len(pending(deployment)) == 2


def test_a_replay_killed_at_any_point_is_completed_by_the_next(deployment: Deployment) -> None:
    """In a transaction, before its end, and between two: each record is put back once."""
    letters = 350  # two transactions
    set_aside(deployment, [ahead(n) for n in range(letters)])
    change_worker(deployment, max_future_s=2 * 3600)
    for step, nth in (("sent", 150), ("filled", 1), ("committed", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.crashing_replay", step, str(nth)],
            env={**os.environ, **environment_of(deployment.settings)},
            timeout=DEADLINE_S,
        )
        assert done.returncode == 9
    assert replay_letters(deployment.settings).put_back == 150, "of the kills, one left 200"
    assert_each_was_put_back_once(deployment, letters)
    assert replay_letters(deployment.settings).put_back == 0
    deployment.consume_all()
    assert deployment.audit().differences == 0


@pytest.mark.parametrize("step", ["sent", "filled"])
def test_of_two_replays_at_once_the_later_one_does_it(
    deployment: Deployment, step: ReplayStep
) -> None:
    """The earlier one is fenced, says so, and has put nothing back twice."""
    set_aside(deployment, [ahead(1), ahead(2)])
    change_worker(deployment, max_future_s=2 * 3600)
    arrived, go_on = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def wait_at(now: ReplayStep) -> None:
        if now == step:
            arrived.set()
            assert go_on.wait(DEADLINE_S)

    def earlier() -> None:
        try:
            replay_letters(deployment.settings, after_step=wait_at)
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=earlier)
    thread.start()
    assert arrived.wait(DEADLINE_S)
    try:
        assert replay_letters(deployment.settings).put_back == 2
    finally:
        go_on.set()
        thread.join(DEADLINE_S)
    assert_each_was_put_back_once(deployment, 2)
    (fenced,) = raised
    assert isinstance(fenced, Unavailable)
    assert "another `mindstream replay`" in str(fenced)


def test_a_letter_of_a_user_erased_meanwhile_does_not_bring_the_user_back(
    deployment: Deployment,
) -> None:
    """Nor does a tombstone that is put back reach further than when it was written."""
    old = Click("u", "item-1", T0).to_record()[1]
    set_aside(deployment, [(b"wrong", old, [], T0 + 5), (b"\xff", None, [], T0 + 10)])
    deployment.produce([Click("v", "item-1", T0 + 10), Click("v", "item-2", T0 + 11)])
    deployment.produce_raw([(b"u", None)], timestamp_ms=T0 + 1000)
    deployment.consume_all()
    keys = {"key_mismatch": "u", "key_not_utf8": "v"}
    lines = [
        json.dumps(json.loads(letter_line(offset, letter)) | {"key": keys[letter.reason]})
        for offset, letter in pending(deployment).items()
    ]
    mended = read_mended(lines, "f")
    assert replay_letters(deployment.settings, mended=mended).put_back == 2
    deployment.consume_all()
    index = InterestIndex(deployment.settings.milvus)
    found = index.interests(deployment.release.name, ["u", "v"], 3, "Strong")
    index.close()
    assert set(found) == {"v"}
    assert [row.exemplar for row in found["v"]] == ["item-2"]
    assert deployment.audit().differences == 0
