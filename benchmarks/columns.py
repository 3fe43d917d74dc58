"""Interest rows as pymilvus's own call for columns takes them."""

from __future__ import annotations

from pymilvus import Collection

from encoder.interests import InterestRows


def columns(rows: InterestRows) -> dict[str, list[object]]:
    """By field."""
    return {
        "id": list(rows.keys),
        "user_id": list(rows.user_ids),
        "slot": rows.slots.tolist(),
        "weight": rows.weights.tolist(),
        "exemplar": list(rows.exemplars),
        "updated_at": rows.updated_at.tolist(),
        "vector": list(rows.vectors),
    }


def in_order(collection: Collection, rows: InterestRows) -> list[list[object]]:
    """In the order of the collection's fields."""
    by_field = columns(rows)
    return [by_field[field.name] for field in collection.schema.fields]
