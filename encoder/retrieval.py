"""Whether an item is retrieved in a release, and where it lies: a function of the items topic."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from encoder.further_items import FurtherItems
from encoder.item_index import ItemChanges
from encoder.item_record import ItemRecord


def retrieved(
    further: FurtherItems, records: Iterable[ItemRecord], withdrawn: set[str]
) -> ItemChanges:
    """What records change in a release's collections of items.

    An item that the release was trained on is there from the beginning: nothing is changed when it
    is announced, unless it may have been withdrawn before. One without a vector is not retrieved.

    Args:
        further: of the release; the records are put into it.
        records: the newest of each item.
        withdrawn: items that were withdrawn at some time, or may have been.
    """
    release = further.release
    kept: list[ItemRecord] = []
    gone: list[bool] = []
    vectors = []
    for record in records:
        vector = further.vector(record.item_id)
        if record.item_id in release.row_of:
            if not record.withdrawn and record.item_id not in withdrawn:
                continue
        elif release.item_fields is None:
            continue
        out = record.withdrawn or vector is None
        kept.append(record)
        gone.append(out)
        vectors.append(np.zeros(release.manifest.width, np.float32) if out else vector)
    width = release.manifest.width
    return ItemChanges(
        item_ids=[record.item_id for record in kept],
        vectors=np.array(vectors, np.float32).reshape(len(kept), width),
        withdrawn=np.array(gone, np.bool_),
        partitions=np.array([record.partition for record in kept], np.int64),
        offsets=np.array([record.offset for record in kept], np.int64),
    )
