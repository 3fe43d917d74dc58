"""Clicks at a steady rate while faults are injected: late, repeated, broken, and tombstones."""

import random
import threading
import time

from encoder.kafka_client import producer
from tests.deployment import T0, Deployment, random_clicks
from tests.faults.background import Background

_CHUNK = 50
_USERS = 120


class Traffic(Background):
    """Produces from a thread of its own until its context ends."""

    def __init__(
        self, deployment: Deployment, seed: int, *, per_s: float = 500, start_ms: int = T0
    ) -> None:
        """Describe it.

        Args:
            deployment: whose clicks topic takes the records.
            seed: of what is drawn.
            per_s: records per second.
            start_ms: event time of the first clicks.
        """
        super().__init__("traffic")
        self._kafka = deployment.settings.kafka
        self._rng = random.Random(seed)  # noqa: S311  nothing secret
        self._pause_s = _CHUNK / per_s
        self._producing = threading.Lock()
        self._now_ms = start_ms

    def pause(self) -> None:
        """Produce nothing until `resume`; returns when everything so far is acknowledged."""
        self._producing.acquire()

    def resume(self) -> None:
        """Go on."""
        self._producing.release()

    def _work(self) -> None:
        client = producer(
            self._kafka, linger_ms=5, delivery_timeout_ms=240_000, max_block_ms=240_000
        )
        following = time.monotonic()
        while not self._over.wait(max(0.0, following - time.monotonic())):
            following += self._pause_s
            with self._producing:
                for key, value, timestamp_ms in self._chunk():
                    client.send(
                        self._kafka.clicks_topic,
                        key=key,
                        value=value,
                        timestamp_ms=timestamp_ms,
                    )
                client.flush()
        client.close()

    def _chunk(self) -> list[tuple[bytes, bytes | None, int]]:
        seed = self._rng.randrange(2**32)
        records: list[tuple[bytes, bytes | None, int]] = []
        for click in random_clicks(_CHUNK, users=_USERS, seed=seed):
            later = click.timestamp_ms - T0 + self._now_ms
            key, value = type(click)(click.user_id, click.item_id, later).to_record()
            drawn = self._rng.random()
            if drawn < 0.01:
                records.append((key, value[:-1], later))  # no longer JSON
            elif drawn < 0.015:
                records.append((key, None, later - self._rng.randrange(200)))
            else:
                records.append((key, value, later))
        self._now_ms += _CHUNK // 3
        return records
