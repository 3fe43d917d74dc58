"""Items that are announced, changed and withdrawn at a steady rate while faults are injected."""

from __future__ import annotations

import json
import random

from encoder.kafka_client import producer
from tests.deployment import Deployment
from tests.faults.background import Background

CATALOGUE = 80  # beyond the items that a release of `tests.small_items` was trained on
_AT_ONCE = 3


class Announcements(Background):
    """Puts records on the items topic, from a thread of its own, until its context ends."""

    def __init__(self, deployment: Deployment, seed: int, *, per_s: float = 15) -> None:
        """Describe it.

        Args:
            deployment: whose items topic takes the records.
            seed: of what is drawn.
            per_s: records per second.
        """
        super().__init__("announcements")
        self._kafka = deployment.settings.kafka
        self._rng = random.Random(seed)  # noqa: S311  nothing secret
        self._pause_s = _AT_ONCE / per_s
        self.said = 0

    def _work(self) -> None:
        client = producer(self._kafka, linger_ms=5)
        while not self._over.wait(self._pause_s):
            for _ in range(_AT_ONCE):
                item_id = f"item-{self._rng.randint(1, CATALOGUE)}"
                value = self._value()
                client.send(self._kafka.items_topic, key=item_id.encode(), value=value)
                self.said += 1
            client.flush()
        client.close()

    def _value(self) -> bytes | None:
        drawn = self._rng.random()
        if drawn < 0.25:
            return None
        if drawn < 0.3:
            return b"{"  # no longer JSON: it says nothing of the item
        if drawn < 0.35:
            return b"{}"
        fields: dict[str, object] = {
            "title": " ".join(self._rng.choices(("red", "blue", "cup", "saucer"), k=2)),
            "price": round(self._rng.random() * 20, 2),
        }
        if self._rng.random() < 0.5:
            fields["brand"] = self._rng.choice(("acme", "best", "nobody's"))
        return json.dumps(fields).encode()
