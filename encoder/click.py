"""The click contract: what a record on the clicks topic must hold.

The key is the user id (UTF-8), the value a JSON object. A record that can never be used raises
`RejectedClick`; the caller sets it aside, so that nothing is lost.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple, NotRequired

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

# Pydantic needs this one before Python 3.12.
from typing_extensions import TypedDict

MAX_ID_BYTES: Final = 256
"""Longest user or item id in UTF-8 bytes; what the store's columns are made for."""

EARLIEST_MS: Final = 100_000_000_000
"""1973-03-03. An event time in seconds would lie below this bound until the year 5138."""

LATEST_MS: Final = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last instant that RFC 3339 can write."""


# Milvus's filters have no way to write these; no id needs them.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class RejectedClick(ValueError):  # noqa: N818  a rejected record is the domain's word, not a failure of ours
    """A record that can never be applied.

    Attributes:
        reason: a constant, fit for a metric label: `no_key`, `key_not_utf8`, `not_json`,
            `invalid_field`, `key_mismatch` or `future_timestamp`.
        detail: what exactly is wrong, naming the field.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def _fits(value: str) -> str:
    if not value:
        raise PydanticCustomError("empty_id", "is empty")
    # Every character takes at least one byte: measure only what could be too long.
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode()) > MAX_ID_BYTES:
        raise PydanticCustomError(
            "long_id", "is longer than {limit} bytes in UTF-8", {"limit": MAX_ID_BYTES}
        )
    if not value.isprintable() and _CONTROL.search(value):
        raise PydanticCustomError("control_in_id", "contains a control character")
    return value


def _to_ms(value: object) -> int:
    if isinstance(value, str) and value[4:5] == "-":  # a bare number in a string is no date
        instant = _INSTANT.validate_python(value)
        whole = int(instant.replace(microsecond=0).timestamp())  # a float would lose digits
        value = whole * 1000 + instant.microsecond // 1000
    if not isinstance(value, int) or isinstance(value, bool):
        raise PydanticCustomError(
            "timestamp_type",
            "must be integer milliseconds or an RFC 3339 date",
        )
    if value < EARLIEST_MS:
        raise PydanticCustomError(
            "timestamp_not_ms", "is too small for milliseconds since 1970; is it in seconds?"
        )
    if value > LATEST_MS:
        raise PydanticCustomError(
            "timestamp_not_ms", "is too large for milliseconds since 1970; is it in microseconds?"
        )
    return value


_INSTANT: Final = TypeAdapter(AwareDatetime)

Id = Annotated[str, AfterValidator(_fits)]
EventMs = Annotated[int, PlainValidator(_to_ms)]


class ClickMessage(BaseModel):
    """The JSON value of a click record. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    user_id: Id
    item_id: Id
    timestamp: EventMs
    event_id: str | None = None


_Short = Annotated[
    str,
    Strict(),
    StringConstraints(min_length=1, max_length=MAX_ID_BYTES // 4, pattern=r"^[^\x00-\x1f\x7f]*$"),
]


class PlainClick(TypedDict):
    """What most clicks are: short ids, and milliseconds. Checked without calling into Python."""

    user_id: _Short
    item_id: _Short
    timestamp: Annotated[int, Strict(), Field(ge=EARLIEST_MS, le=LATEST_MS)]
    event_id: NotRequired[Annotated[str, Strict()] | None]


_PLAIN: Final = TypeAdapter(PlainClick).validator


class Click(NamedTuple):
    """One click of one user, with its event time in milliseconds since 1970."""

    user_id: str
    item_id: str
    timestamp_ms: int
    event_id: str | None = None

    def to_record(self) -> tuple[bytes, bytes]:
        """The key and value of this click's record, as `parse_click` reads them."""
        message = ClickMessage(
            user_id=self.user_id,
            item_id=self.item_id,
            timestamp=self.timestamp_ms,
            event_id=self.event_id,
        )
        return self.user_id.encode(), message.model_dump_json(exclude_none=True).encode()


class Erasure(NamedTuple):
    """A tombstone: forget this user's clicks up to and including a time, in ms since 1970."""

    user_id: str
    up_to_ms: int


def parse_record(
    key: bytes | None, value: bytes | None, timestamp_ms: int, *, max_future_ms: int
) -> Click | Erasure:
    """Read one record of the clicks topic, by itself alone.

    A click's event time is measured against its record's own timestamp, which the broker bounds,
    and not against our clock, so that a replay decides alike.

    Args:
        key: the user id in UTF-8.
        value: a click as JSON; None asks to forget the user.
        timestamp_ms: the record's timestamp.
        max_future_ms: how far a click's event time may lie ahead of that.

    Raises:
        RejectedClick: the record can never be applied; says which field and why.
    """
    if value is None:
        user_id = parse_user(key)
        if timestamp_ms < EARLIEST_MS:
            raise RejectedClick(
                "invalid_field",
                f"the record's timestamp is {timestamp_ms} ms, and no click is so old that a"
                " tombstone up to then would forget it",
            )
        return Erasure(user_id, timestamp_ms)
    return parse_click(key, value, latest_ms=timestamp_ms + max_future_ms)


def parse_user(key: bytes | None) -> str:
    """The user id that a record's key holds.

    Raises:
        RejectedClick: there is no key, it is not UTF-8, or it is no user id.
    """
    if key is None:
        raise RejectedClick("no_key", "the record has no key; the key must be the user id")
    try:
        user_id = key.decode()
    except UnicodeDecodeError as exc:
        raise RejectedClick("key_not_utf8", f"the record's key is not UTF-8: {exc}") from exc
    try:
        return _fits(user_id)
    except PydanticCustomError as exc:
        raise RejectedClick("invalid_field", f"the record's key {exc.message()}") from exc


def parse_click(key: bytes | None, value: bytes, *, latest_ms: int) -> Click:
    """Read one click record.

    Args:
        key: the record's key, the user id in UTF-8.
        value: the record's value, a JSON object as `ClickMessage` describes.
        latest_ms: event times after this instant are rejected. A click from a broken clock would
            otherwise stay the newest of its window until real time catches up.

    Raises:
        RejectedClick: the record can never be applied; says which field and why.
    """
    try:
        plain = _PLAIN.validate_json(value)
    except ValidationError:
        return _parse_any(key, value, latest_ms)
    user_id, timestamp_ms = plain["user_id"], plain["timestamp"]
    if user_id.encode() != key or timestamp_ms > latest_ms:
        return _parse_any(key, value, latest_ms)
    return Click(user_id, plain["item_id"], timestamp_ms, plain.get("event_id"))


def _parse_any(key: bytes | None, value: bytes, latest_ms: int) -> Click:
    """The definition of what is a click, and of what is wrong with one that is not."""
    user_id = parse_user(key)
    try:
        message = ClickMessage.model_validate_json(value)
    except ValidationError as exc:
        raise _rejection(exc) from exc
    if message.user_id != user_id:
        raise RejectedClick(
            "key_mismatch",
            "the record's key is not its user_id, so it may be on another user's partition",
        )
    if message.timestamp > latest_ms:
        raise RejectedClick(
            "future_timestamp",
            f"timestamp is {message.timestamp - latest_ms} ms beyond what is accepted at this time",
        )
    return Click(user_id, message.item_id, message.timestamp, message.event_id)


def _rejection(exc: ValidationError) -> RejectedClick:
    problems = exc.errors(include_url=False, include_input=False, include_context=False)
    if any(problem["type"] == "json_invalid" for problem in problems):
        return RejectedClick("not_json", problems[0]["msg"])
    detail = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'value'} {problem['msg']}"
        for problem in problems
    )
    return RejectedClick("invalid_field", detail)
