"""What the items topic says, and what is new of it."""

from encoder.announced_items import AnnouncedItems
from encoder.item_record import ItemRecord


def record(item_id: str, partition: int, offset: int, value: bytes | None = b"{}") -> ItemRecord:
    return ItemRecord(item_id, partition, offset, value)


def test_the_last_record_of_an_item_counts() -> None:
    """Each is handed out once, in the order of the offsets of its partition."""
    items = AnnouncedItems()
    items.apply([record("a", 0, 1), record("b", 0, 2)], {0: 3})
    items.apply([record("c", 1, 0), record("a", 0, 5, None)], {0: 6, 1: 1})
    fresh, offsets = items.take()
    assert fresh == [record("b", 0, 2), record("c", 1, 0), record("a", 0, 5, None)]
    assert offsets == items.offsets == {0: 6, 1: 1}
    assert items.take() == ([], offsets)
    assert len(items) == 3


def test_what_changed_since_is_told_by_partition_and_offset() -> None:
    """Of a partition that nothing is known of, all of it."""
    items = AnnouncedItems()
    items.apply([record("a", 0, 1), record("b", 0, 2), record("c", 1, 0)], {0: 3, 1: 1})
    assert items.since({0: 2, 1: 1}) == [record("b", 0, 2)]
    assert items.since({0: 3}) == [record("c", 1, 0)]
    assert len(items.since({})) == 3


def test_offsets_beyond_the_end_are_of_another_topic() -> None:
    """It was deleted and created again: everything is new."""
    items = AnnouncedItems()
    items.apply([record("a", 0, 1)], {0: 2})
    assert items.since({0: 9}) == [record("a", 0, 1)]
