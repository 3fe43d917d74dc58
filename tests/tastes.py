"""A made-up click log in which every user has two tastes, to see whether training finds them."""

import numpy as np

from training.click_log import ClickLog

GROUPS = 20
ITEMS_PER_GROUP = 15


def group_of(item_id: str) -> int:
    """The taste that an item belongs to."""
    return int(item_id.split("-")[0][1:])


def planted_log(*, users: int = 400, clicks: int = 60, seed: int = 0) -> ClickLog:
    """Users who click evenly among the items `g<group>-<number>` of their two groups."""
    rng = np.random.default_rng(seed)
    user_ids, item_ids, times = [], [], []
    for user in range(users):
        tastes = rng.choice(GROUPS, 2, replace=False)
        for click in range(clicks):
            user_ids.append(f"user-{user}")
            item_ids.append(f"g{rng.choice(tastes)}-{rng.integers(ITEMS_PER_GROUP)}")
            times.append(1_000_000 * click + user)
    return ClickLog.from_arrays(user_ids, item_ids, times)


def shuffled(log: ClickLog, *, seed: int = 0) -> ClickLog:
    """The same log with its items dealt out anew: as popular as before, and no taste left."""
    items = np.random.default_rng(seed).permutation(log.items)
    return ClickLog.from_arrays(
        [log.user_ids[user] for user in log.users],
        [log.item_ids[item] for item in items],
        log.timestamps_ms,
    )
