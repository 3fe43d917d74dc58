"""Many clicks read in one call, where all of them are of the plain kind that most clicks are."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from operator import add, gt, itemgetter
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from encoder.click import PlainClick

TOGETHER: Final = 512
"""Records of a call at most."""

# A value must not be able to pass for two, or for a part of the next one. It is put behind a name
# that nobody who produces can know: all names are there, in order, and nothing else is, if and only
# if each value is one JSON value by itself.
_NAMES: Final = [f"{secrets.token_hex(8)}-{number}" for number in range(TOGETHER)]
_MEMBERS: Final = [f'"{name}":'.encode() for name in _NAMES]
_MANY: Final = TypeAdapter(dict[str, PlainClick]).validator
_FIELDS: Final = itemgetter("user_id", "item_id", "timestamp")


class PlainClicks(NamedTuple):
    """Clicks as columns, in the order of their records."""

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    timestamps_ms: tuple[int, ...]


def parse_plain(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], latest_ms: Sequence[int]
) -> PlainClicks | None:
    """Read records of the clicks topic, `TOGETHER` of them at most.

    Args:
        keys: of each record.
        values: of each record.
        latest_ms: the latest event time that each may have, as in `encoder.click.parse_click`.

    Returns:
        What `parse_click` says of each. None where one of them is anything but a plain click, and
        each has to be looked at by itself.

    Raises:
        ValueError: there are more.
    """
    if len(values) > TOGETHER:
        raise ValueError(f"{len(values)} records at once, at most {TOGETHER} are read")
    known = [key for key in keys if key is not None]
    texts = [value for value in values if value is not None]
    if not len(known) == len(texts) == len(values) > 0:
        return None
    text = b"{%b}" % b",".join(map(add, _MEMBERS, texts))
    try:
        found = _MANY.validate_json(text)
    except ValidationError:
        return None
    if list(found) != _NAMES[: len(values)]:
        return None
    clicks = PlainClicks(*zip(*map(_FIELDS, found.values()), strict=True))
    # No id has a NUL in it, so that the ids are the keys one by one if all are in a row.
    if "\0".join(clicks.user_ids).encode() != b"\0".join(known):
        return None
    if any(map(gt, clicks.timestamps_ms, latest_ms)):
        return None
    return clicks
