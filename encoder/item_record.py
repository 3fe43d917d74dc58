"""The item contract: what a record on the items topic says of an item.

The key is the item id (UTF-8), the value a JSON object of fields: a text, a number, a list of
texts, or null where it is not known. A null value withdraws the item.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from encoder.click import Id
from encoder.item_fields import FieldValue

_ID: Final = TypeAdapter(Id)
_ITEM_ID: Final = "item_id"

Fields = dict[str, FieldValue]


class RejectedItem(ValueError):  # noqa: N818  a rejected record is the domain's word, as for clicks
    """A record that says nothing of an item.

    Attributes:
        reason: a constant, fit for a metric label: `no_key`, `key_not_utf8`, `invalid_key`,
            `not_json`, `not_an_object` or `key_mismatch`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """What was said of an item last, and where it lies on the topic.

    Attributes:
        value: as it lay there; None where the item was withdrawn. It is kept unparsed, since it is
            read once for every release and a catalogue is large.
    """

    item_id: str
    partition: int
    offset: int
    value: bytes | None

    @property
    def withdrawn(self) -> bool:
        """Whether the item must not be retrieved."""
        return self.value is None

    def fields(self) -> Fields:
        """What is known of the item; empty for one that was withdrawn, and for a bad record.

        A bad record replaces the one before it all the same: compaction removes that one, and
        whoever reads the topic later could not know of it.
        """
        if self.value is None:
            return {}
        try:
            return parse_fields(self.item_id, self.value)
        except RejectedItem:
            return {}


def parse_item_id(key: bytes | None) -> str:
    """The item that a record is of.

    Raises:
        RejectedItem: the key is no item id.
    """
    if key is None:
        raise RejectedItem("no_key", "the record has no key; the key must be the item id")
    try:
        return _ID.validate_python(key.decode())
    except UnicodeDecodeError as exc:
        raise RejectedItem("key_not_utf8", f"the record's key is not UTF-8: {exc}") from exc
    except ValidationError as exc:
        raise RejectedItem("invalid_key", f"the record's key {exc.errors()[0]['msg']}") from exc


def parse_fields(item_id: str, value: bytes | str) -> Fields:
    """The fields of an item. Values of other types than the contract's count as not known.

    Raises:
        RejectedItem: it is no JSON object, or of another item.
    """
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as exc:  # also where it is not UTF-8
        raise RejectedItem("not_json", str(exc)) from exc
    if not isinstance(found, dict):
        raise RejectedItem("not_an_object", "the value must be a JSON object of fields, or null")
    if found.get(_ITEM_ID, item_id) != item_id:
        raise RejectedItem("key_mismatch", "the record's key is not its item_id")
    return {name: _known(field) for name, field in found.items() if name != _ITEM_ID}


def _known(value: Any) -> FieldValue:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None
