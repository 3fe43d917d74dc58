"""Turns the items topic into the catalogue that a release is trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from encoder.item_fields import FieldValue, ItemField
from encoder.item_topic import read_items
from encoder.settings import Settings
from training.trainer import Catalogue


def catalogue_from_topic(
    settings: Settings, notice: Callable[[str], None] = lambda _: None
) -> Catalogue | None:
    """What the items topic says of items now, withdrawn ones left out.

    Args:
        settings: where the topic is; which fields count, and of what kind they are.
        notice: told how many items there are, and of values that are not of their field's kind,
            which count as not known.

    Returns:
        None where the settings name no field.

    Raises:
        Misconfigured: there is no such topic.
        Unavailable: Kafka does not answer.
    """
    kinds = settings.trainer.item_fields
    if not kinds:
        return None
    fields = [ItemField(name=name, kind=kind) for name, kind in kinds.items()]
    items: dict[str, Mapping[str, FieldValue]] = {}
    wrong = 0
    for record in read_items(settings.kafka).since({}):
        if record.withdrawn:
            continue
        said = record.fields()
        sound = {field.name: said.get(field.name) for field in fields if _fits(field, said)}
        wrong += len(fields) - len(sound)
        items[record.item_id] = sound
    notice(f"{len(items):,} items have fields ({', '.join(kinds)}); {wrong:,} values do not fit")
    return Catalogue(kinds, items)


def _fits(field: ItemField, said: Mapping[str, FieldValue]) -> bool:
    value = said.get(field.name)
    try:
        field.number(value) if field.kind == "band" else field.parts(value)
    except ValueError:
        return False
    return True
