"""The update service as one would write it with Quix Streams, as a fair opponent.

Windows are kept in its state store. A sink takes what a checkpoint of a second gathered, encodes
the newest window of each user in one call, and writes columns. It has no erasure, no dead letters,
no checks of what it reads, and no releases. `benchmarks.alternative` runs it, in an environment of
its own.
"""

import argparse
from pathlib import Path

import numpy as np
from pymilvus import Collection, connections
from quixstreams import Application, State
from quixstreams.sinks.base import BatchingSink, SinkBatch

from benchmarks.columns import in_order
from encoder.interests import ClickColumns, compute_interests, interest_key
from encoder.mind_encoder import MindEncoder
from encoder.release_store import fetch_release

_SLOTS = 4


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("broker", "topic", "group", "milvus", "release", "folder"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    release = fetch_release(options.release, Path(options.folder) / "cache")
    length = release.manifest.window_length

    def updated(click: dict[str, object], state: State) -> list[list[object]]:
        window = state.get("window", [])
        window.append([click["timestamp"], click["item_id"]])
        if len(window) > 1 and window[-2] > window[-1]:
            window.sort()
        window = window[-length:]
        state.set("window", window)
        return window

    class Interests(BatchingSink):
        def setup(self) -> None:
            connections.connect("default", uri=options.milvus)
            self._collection = Collection(f"interests_{release.name}")
            self._encoder = MindEncoder(release)

        def write(self, batch: SinkBatch) -> None:
            windows = {item.key: item.value for item in batch}  # the newest of each user
            clicks = [click for window in windows.values() for click in window]
            columns = ClickColumns(
                np.array([timestamp for timestamp, _ in clicks], np.int64),
                release.rows(item for _, item in clicks),
                np.array([len(window) for window in windows.values()], np.int64),
            )
            users = list(windows)
            rows, used = compute_interests(self._encoder, users, columns)
            if len(rows):
                self._collection.upsert(in_order(self._collection, rows))
            stale = [
                interest_key(user, slot)
                for user, first in zip(users, used.tolist(), strict=True)
                for slot in range(first, _SLOTS)
            ]
            if stale:
                quoted = ", ".join(f'"{key}"' for key in stale)
                self._collection.delete(f"id in [{quoted}]")

    application = Application(
        broker_address=options.broker,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        commit_interval=1.0,
        state_dir=Path(options.folder) / "state",
        consumer_poll_timeout=0.05,
    )
    topic = application.topic(options.topic, key_deserializer="str", value_deserializer="json")
    stream = application.dataframe(topic)
    stream = stream.apply(updated, stateful=True)
    stream.sink(Interests())
    application.run()


if __name__ == "__main__":
    main()
