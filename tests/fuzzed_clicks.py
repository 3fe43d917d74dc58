"""Records as broken producers write them, among clicks that are as they should be."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from encoder.kafka_client import producer
from encoder.settings import Settings
from tests.deployment import ITEMS, T0

FuzzedRecord = tuple[bytes | None, bytes | None, list[tuple[str, bytes]], int]
"""Key, value, headers and the record's timestamp in ms."""

_ODD_IDS = (
    " ",
    "'",
    '"',
    "\\",
    "a'b\"c\\d",
    "%_%",
    "{}[]()",
    "user_id == 'x' or true",
    "null",
    "NaN",
    "-0",
    "é",
    "e\u0301",
    "\u202eright to left",
    "\ufeff",
    "\uffff",
    "\x80\x9f",
    "日本語",
    "👩‍👩‍👧",
    "x" * 256,
    "é" * 128,
)
_MEGABYTE = 1_000_000


def fuzzed_records(n: int, seed: int) -> list[FuzzedRecord]:
    """Records for the clicks topic, the same for the same seed.

    About half are valid clicks (late, repeated, on odd ids and unknown items) and a few are
    tombstones; the rest is broken in every way we know, or in a random one. One in two thousand is
    of a megabyte. None lacks both key and value, which kafka-python cannot send.
    """
    rng = random.Random(seed)  # noqa: S311  nothing secret
    return [_fuzzed(rng, number) for number in range(n)]


def produce_fuzzed(settings: Settings, records: Sequence[FuzzedRecord]) -> None:
    """Put the records on the clicks topic, those without a key on partition 0."""
    client = producer(settings.kafka, linger_ms=5, batch_size=1 << 17)
    sent = [
        client.send(
            settings.kafka.clicks_topic,
            key=key,
            value=value,
            headers=headers,
            timestamp_ms=timestamp_ms,
            partition=0 if key is None else None,
        )
        for key, value, headers, timestamp_ms in records
    ]
    client.flush()
    for future in sent:
        future.get(timeout=60)
    client.close()


def _fuzzed(rng: random.Random, number: int) -> FuzzedRecord:
    at = T0 + number
    headers = _headers(rng)
    if number % 2000 == 1000:
        return b"big", _big(rng), headers, at
    user, click = _click(rng, at)
    key, value = user.encode(), json.dumps(click).encode()
    dice = rng.random()
    if dice < 0.5:
        return key, value, headers, at
    if dice < 0.53:
        return key, None, headers, at - rng.choice((0, 500))  # a tombstone
    if dice < 0.6:
        return _with_a_bad_key(rng, key), value, headers, at
    if dice < 0.85:
        return key, rng.choice(_BREAKS)(rng, click), headers, at
    return key, _damaged(rng, value), headers, at


def _click(rng: random.Random, at: int) -> tuple[str, dict[str, Any]]:
    user = rng.choice(_ODD_IDS) if rng.random() < 0.1 else f"user-{int(300 * rng.random() ** 2)}"
    known = rng.random() < 0.8
    item = f"item-{rng.randint(1, ITEMS)}" if known else rng.choice(_ODD_IDS)
    click: dict[str, Any] = {
        "user_id": user,
        "item_id": item,
        "timestamp": at - rng.choice((0, 0, 1, 300, 5000)),
    }
    if rng.random() < 0.2:
        click["event_id"] = f"e{rng.randrange(1000)}"
    if rng.random() < 0.2:
        click["page"] = {"nested": [1, None, "ü"]}
    return user, click


def _headers(rng: random.Random) -> list[tuple[str, bytes]]:
    if rng.random() < 0.7:
        return []
    choices = [
        ("trace", rng.randbytes(8)),
        ("", b""),
        ("ü", "ü".encode()),
        ("trace", b"twice"),
        ("mindstream.topic", b"not ours"),
        ("mindstream.replayed", b"0"),
        ("mindstream.nulls", b"value"),
    ]
    return rng.sample(choices, rng.randint(1, len(choices)))


def _big(rng: random.Random) -> bytes:
    filler = rng.choice(("x" * _MEGABYTE, "[" * _MEGABYTE, "é" * (_MEGABYTE // 2)))
    click = {"user_id": "big", "item_id": "item-1", "timestamp": T0, "page": filler}
    return rng.choice((filler.encode(), rng.randbytes(_MEGABYTE), json.dumps(click).encode()))[
        :_MEGABYTE
    ]


def _with_a_bad_key(rng: random.Random, key: bytes) -> bytes | None:
    bad = (None, b"", b"\xff\xfe", key + b"\xc3", key + b"x", b"k" * 300, b"a\0b", rng.randbytes(9))
    return rng.choice(bad)


def _set(name: str, *values: Any) -> Callable[[random.Random, dict[str, Any]], bytes]:
    return lambda rng, click: json.dumps(click | {name: rng.choice(values)}).encode()


def _text(before: str, name: str, raw: str) -> Callable[[random.Random, dict[str, Any]], bytes]:
    """Write one field's value by hand, where `json` would write it differently or not at all."""

    def write(rng: random.Random, click: dict[str, Any]) -> bytes:
        rest = json.dumps({key: value for key, value in click.items() if key != name})
        return f'{before}{rest[:-1]},"{name}":{raw}}}'.encode()

    return write


def _without(rng: random.Random, click: dict[str, Any]) -> bytes:
    gone = rng.choice(("user_id", "item_id", "timestamp"))
    return json.dumps({key: value for key, value in click.items() if key != gone}).encode()


def _twice(rng: random.Random, click: dict[str, Any]) -> bytes:
    text = json.dumps(click)[:-1]
    name, value = rng.choice((("item_id", '"item-2"'), ("user_id", '"other"'), ("timestamp", "1")))
    return f'{text},"{name}":{value}}}'.encode()


_BREAKS: Sequence[Callable[[random.Random, dict[str, Any]], bytes]] = (
    _without,
    _twice,
    _set("user_id", "", "other", None, 7, 1.5, True, [], {}, "u" * 257, "u" * 100_000, "a\0b"),
    _set("item_id", "", None, 7, False, ["item-1"], {"id": 1}, "i" * 257, "é" * 129, "a\nb"),
    _set("timestamp", T0 // 1000, T0 * 1000, T0 * 10**6, T0 + 10**10, 253_402_300_799_999),
    _set("timestamp", None, True, -1, 0, float(T0), 1e300, 10**30, 10**400, [T0], {"ms": T0}),
    _set("timestamp", "", "now", str(T0), "2023-11-14", "2023-11-14T22:13:20", "2999-01-01T0:0Z"),
    _set("timestamp", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "-" * 5000),
    _set("timestamp", "2023-11-14T22:13:20.123456789Z", "2023-11-14T22:13:20+01:00"),
    _set("timestamp", float("nan"), float("inf"), -float("inf")),
    _set("event_id", 7, [], {}, True, ""),
    _text("", "item_id", '"\\ud800"'),
    _text("", "item_id", '"\\udc00\\ud800"'),
    _text("", "user_id", '"\\u0000"'),
    _text("", "timestamp", "1" * 5000),
    _text("", "timestamp", "01700000000000"),
    _text("", "timestamp", "1.7e12"),
    _text("", "page", "[" * 5000 + "]" * 5000),
    _text("", "page", "NaN"),
    _text("\ufeff", "page", "1"),
    _text("", "page", '"\x00"'),
    lambda rng, click: json.dumps([click]).encode(),
    lambda rng, click: json.dumps(json.dumps(click)).encode(),
    lambda rng, click: json.dumps(click).encode("utf-16"),
    lambda rng, click: json.dumps(click).encode() * 2,
    lambda rng, click: rng.choice((b"", b" ", b"\0", b"null", b"[]", b"{}", b"0", b'"', b"\xff")),
    lambda rng, click: rng.randbytes(rng.randint(1, 200)),
)


def _damaged(rng: random.Random, value: bytes) -> bytes:
    """Some bytes changed, cut out, doubled or put in."""
    damaged = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(damaged) + 1)
        match rng.randrange(4):
            case 0:
                damaged[place : place + 1] = rng.randbytes(1)
            case 1:
                del damaged[place : place + rng.randint(1, 20)]
            case 2:
                damaged[place:place] = damaged[place : place + rng.randint(1, 20)]
            case _:
                damaged[place:place] = rng.randbytes(rng.randint(1, 3))
    return bytes(damaged)
