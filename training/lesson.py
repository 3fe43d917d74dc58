"""What one training learns from and is measured on."""

from dataclasses import dataclass

from training.click_log import ClickLogError
from training.evaluation import HeldOut
from training.sequences import Learnable


@dataclass(frozen=True)
class Lesson:
    """The clicks before a moment, to learn from, and what users clicked after it.

    Attributes:
        item_ids: what rows 1..N of the item table stand for.
        sequences: the clicks before it.
        held_out: those after it, of users who had clicked before.
        since_ms: time of the oldest click to learn from.
        until_ms: of the newest.
        clicks: how many there are to learn from.
        users: of how many users.
    """

    item_ids: list[str]
    sequences: Learnable
    held_out: HeldOut
    since_ms: int
    until_ms: int
    clicks: int
    users: int

    def __post_init__(self) -> None:
        if not self.sequences.example_count:
            raise ClickLogError(
                f"no user has two clicks on known items in the {self.clicks} clicks to train on; "
                "train on a longer time"
            )
