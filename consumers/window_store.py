"""The windows that a worker owns, in memory, by partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from consumers.packed_window import EMPTY, ItemCodes
from consumers.window_wire import CorruptAt, from_wires
from encoder.windows_topic import CorruptWindowRecord, WindowRecords


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

    def restore(self, gathered: Sequence[WindowRecords]) -> None:
        """Set windows as they were written, in the order given.

        Raises:
            KeyError: a partition is not held.
            CorruptWindowRecord: one of them is no window, whether or not it was written over.
        """
        windows = iter(self._packed(gathered))
        for part in gathered:
            held = self._partitions[part.partition]
            if None not in part.values:
                held.update(zip(part.user_ids, islice(windows, len(part)), strict=True))
                continue
            for user_id, value in zip(part.user_ids, part.values, strict=True):
                if value is None:
                    held.pop(user_id, None)
                else:
                    held[user_id] = next(windows)

    def _packed(self, gathered: Sequence[WindowRecords]) -> list[bytes]:
        """Of all that are not removals."""
        values = [value for part in gathered for value in part.values if value is not None]
        try:
            return from_wires(values, self.codes)
        except CorruptAt as exc:
            places = (
                (part.partition, offset)
                for part in gathered
                for offset, value in zip(part.offsets, part.values, strict=True)
                if value is not None
            )
            partition, offset = next(islice(places, exc.position, None))
            raise CorruptWindowRecord(partition, offset, str(exc)) from exc

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
