"""A catalogue in a file: one JSON object a line, with `item_id` and the item's fields."""

from __future__ import annotations

import json
from collections.abc import Iterable

from encoder.errors import Misconfigured
from encoder.item_record import RejectedItem, parse_fields, parse_item_id

_TOLD = 5


def read_item_lines(lines: Iterable[str], name: str) -> list[tuple[str, bytes]]:
    """Item ids and what to put on the items topic for each.

    Args:
        lines: of the file; empty ones are passed over.
        name: of the file, for the message.

    Raises:
        Misconfigured: some lines are no items; names the file, and the first of them with what is
            wrong.
    """
    found: list[tuple[str, bytes]] = []
    wrong: list[str] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            item_id = _item_id(text)
            parse_fields(item_id, text)
            found.append((item_id, text.strip().encode()))
        except (RejectedItem, UnicodeEncodeError) as exc:
            wrong.append(f"line {number}: {exc}")
    if wrong:
        more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
        raise Misconfigured(f"{name} has lines that are no items: {'; '.join(wrong[:_TOLD])}{more}")
    return found


def _item_id(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RejectedItem("not_json", str(exc)) from exc
    item_id = found.get("item_id") if isinstance(found, dict) else None
    if not isinstance(item_id, str):
        raise RejectedItem("not_an_object", "a line must be a JSON object with a text item_id")
    return parse_item_id(item_id.encode())
