"""The windows that a worker owns, in memory, by partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from consumers.packed_window import EMPTY, ItemCodes, pack
from encoder.window import Window


class WindowStore:
    """Packed windows by partition and user. Holds nothing for partitions it was not given."""

    def __init__(self) -> None:
        self.codes = ItemCodes()
        self._partitions: dict[int, dict[str, bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._partitions.values()))

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions whose windows are held."""
        return frozenset(self._partitions)

    def add_partition(self, partition: int) -> None:
        """Take a partition over, without windows yet."""
        self._partitions[partition] = {}

    def restore(self, partition: int, user_id: str, window: Window | None) -> None:
        """Set a user's window as it was last written, None where it was removed."""
        if window is None:
            self._partitions[partition].pop(user_id, None)
        else:
            self._partitions[partition][user_id] = pack(window, self.codes)

    def drop_partition(self, partition: int) -> None:
        """Let a partition go."""
        self._partitions.pop(partition, None)

    def packed(self, partition: int, user_id: str) -> bytes:
        """A user's packed window, the empty one where nothing is known.

        Raises:
            KeyError: the partition is not held.
        """
        return self._partitions[partition].get(user_id, EMPTY)

    def put(self, partition: int, windows: Mapping[str, bytes]) -> None:
        """Keep changed windows; empty ones are dropped."""
        held = self._partitions[partition]
        for user_id, packed in windows.items():
            if packed == EMPTY:
                held.pop(user_id, None)
            else:
                held[user_id] = packed

    def users(self, partition: int) -> Iterator[tuple[str, bytes]]:
        """All users of a partition with their packed windows."""
        yield from self._partitions[partition].items()
