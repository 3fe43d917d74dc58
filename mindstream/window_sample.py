"""Windows of users drawn at random, followed on the windows topic in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from encoder.settings import Settings
from encoder.window import Window, from_wire
from encoder.windows_topic import read_window_records


class WindowSample:
    """The users of the smallest hashes, as many as are asked for, with their windows.

    Who is in it depends on who has a window and on the seed, not on the order in which they come:
    each user is as likely as any other, and stays while few new ones come.
    """

    def __init__(self, most: int, seed: int) -> None:
        """Begin with nobody.

        Args:
            most: users to keep; all while there are fewer.
            seed: of the draw.
        """
        self._most = most
        self._key = seed.to_bytes(8, "little")
        self._values: dict[str, bytes] = {}
        self._last = 2**64  # ranks above it are out for good: their windows were not kept

    def put(self, user_id: str, value: bytes | None) -> tuple[bytes | None, bytes | None] | None:
        """Note a user's newest window, in its wire form; None where it was removed.

        Returns:
            The window before and this one; None where the user is not drawn.
        """
        if self._rank(user_id) > self._last:
            return None
        before = self._values.pop(user_id, None)
        if value is not None:
            self._values[user_id] = value
            if len(self._values) > 2 * self._most:
                self._cut()
        return before, value

    def windows(self, most: int | None = None) -> list[Window]:
        """Windows of all who are drawn, or of the first so many, in an order that keeps."""
        self._cut()
        return [from_wire(self._values[user_id]) for user_id in self._ranked()[:most]]

    def __len__(self) -> int:
        return min(self._most, len(self._values))

    def _cut(self) -> None:
        if len(self._values) > self._most:
            kept = self._ranked()[: self._most]
            self._last = self._rank(kept[-1])
            self._values = {user_id: self._values[user_id] for user_id in kept}

    def _ranked(self) -> list[str]:
        return sorted(self._values, key=self._rank)

    def _rank(self, user_id: str) -> int:
        digest = hashlib.blake2b(user_id.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little")


class WindowFollower:
    """Reads the windows topic on and on, outside the group, and keeps a sample of its users."""

    def __init__(self, settings: Settings, partitions: int, most: int, *, seed: int) -> None:
        """Read nothing yet.

        Args:
            settings: where the topic is.
            partitions: how many it has.
            most: users to keep, drawn with the seed.
            seed: of the draw.
        """
        self._settings = settings
        self._partitions = partitions
        self._next: dict[int, int] = {}
        self.sample = WindowSample(most, seed)

    @property
    def read_up_to(self) -> dict[int, int]:
        """The next offset of each partition that anything was read of."""
        return dict(self._next)

    def read(self) -> Iterator[list[tuple[bytes | None, bytes | None]]]:
        """All that was written since this was last called; the first time, all there is.

        Yields:
            Windows before and after, of users drawn, some at a time.

        Raises:
            Misconfigured: a record has no user.
            Unavailable: Kafka does not answer.
        """
        for gathered in read_window_records(
            self._settings.kafka,
            range(self._partitions),
            timeout_s=self._settings.worker.open_transaction_s,
            start=dict(self._next),
        ):
            changes = []
            for part in gathered:
                for user_id, value in zip(part.user_ids, part.values, strict=True):
                    if (change := self.sample.put(user_id, value)) is not None:
                        changes.append(change)
                self._next[part.partition] = part.offsets[-1] + 1
            yield changes


def draw_windows(settings: Settings, partitions: int, most: int, *, seed: int) -> list[Window]:
    """Windows of users drawn from all that there are.

    Raises:
        Misconfigured: a record has no user.
        Unavailable: Kafka does not answer.
    """
    follower = WindowFollower(settings, partitions, most, seed=seed)
    for _ in follower.read():
        pass
    return follower.sample.windows()
