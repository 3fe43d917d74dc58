"""Dead letters as JSON lines, which a person may mend and hand back.

One letter a line. Bytes are a string where they are UTF-8, and `{"base64": "…"}` otherwise; null
is null. What may be changed is `key`, `value` and `headers`; `letter` and `source` say which letter
it is, and `reason` and `detail` are there to read.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from encoder.dead_letter_topic import PARTITION, DeadLetter
from encoder.errors import Misconfigured
from encoder.records import Headers

_BASE64: Final = "base64"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _to_bytes(value: object) -> bytes | None:
    match value:
        case None:
            return None
        case str():
            return value.encode()
        case {"base64": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise ValueError(f"is no base64: {exc}") from exc
    raise ValueError('must be a string, {"base64": "…"} or null')


Bytes = Annotated[bytes | None, BeforeValidator(_to_bytes)]


class _Letter(_Part):
    partition: int
    offset: int


class _Source(_Part):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class _Line(_Part):
    letter: _Letter
    source: _Source
    reason: str = ""
    detail: str = ""
    key: Bytes
    value: Bytes
    headers: list[tuple[str, Bytes]]


@dataclass(frozen=True, slots=True)
class MendedLetter:
    """A letter as a person handed it back.

    Attributes:
        line: its number in the file, from 1.
        source: topic, partition, offset and timestamp in ms of the record on the clicks topic.
    """

    line: int
    source: tuple[str, int, int, int]
    key: bytes | None
    value: bytes | None
    headers: Headers


def source_of(letter: DeadLetter) -> tuple[str, int, int, int]:
    """Topic, partition, offset and timestamp in ms of the rejected record."""
    return letter.topic, letter.partition, letter.offset, letter.timestamp_ms


def letter_line(offset: int, letter: DeadLetter) -> str:
    """A letter as one line of ASCII, without the line's end.

    Args:
        offset: the letter's own, on the dead-letter topic.
    """
    return json.dumps(
        {
            "letter": {"partition": PARTITION, "offset": offset},
            "source": {
                "topic": letter.topic,
                "partition": letter.partition,
                "offset": letter.offset,
                "timestamp_ms": letter.timestamp_ms,
            },
            "reason": letter.reason,
            "detail": letter.detail,
            "key": _from_bytes(letter.key),
            "value": _from_bytes(letter.value),
            "headers": [[name, _from_bytes(value)] for name, value in letter.headers],
        }
    )


def read_mended(lines: Iterable[str], name: str) -> dict[int, MendedLetter]:
    """Letters as `letter_line` wrote them and a person changed them, by their offset.

    Args:
        lines: of the file; empty ones are passed over.
        name: of the file, for the message.

    Raises:
        Misconfigured: a line is no letter, or repeats one; names the file and the line.
    """
    mended: dict[int, MendedLetter] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as exc:
            problems = exc.errors(include_url=False, include_input=False, include_context=False)
            told = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc']) or 'the line'}:"
                f" {problem['msg'].removeprefix('Value error, ')}"
                for problem in problems
            )
            raise Misconfigured(f"{name}, line {number} is no dead letter: {told}") from exc
        offset = line.letter.offset
        if offset in mended:
            raise Misconfigured(
                f"{name}, line {number} repeats the letter at offset {offset}, which is on line"
                f" {mended[offset].line} already; a letter is put back once"
            )
        source = line.source
        mended[offset] = MendedLetter(
            number,
            (source.topic, source.partition, source.offset, source.timestamp_ms),
            line.key,
            line.value,
            tuple(line.headers),
        )
    return mended


def _from_bytes(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {_BASE64: base64.b64encode(value).decode()}
