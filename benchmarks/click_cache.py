"""What reading clicks into the trainer's cache takes: `python -m benchmarks.click_cache`.

For topics of two sizes: the time and the peak of memory of a process that reads all of it, and of
one that finds nothing new.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.results import machine, say
from deploy.local_broker import LocalBroker
from encoder.click import Click
from encoder.click_history import clicks_extent
from encoder.kafka_client import producer
from encoder.settings import Settings, load_settings
from encoder.topics import create_topics
from tests.stored_training import peak_bytes
from training.click_cache import ClickCache, Plan

_USERS, _ITEMS, _PARTITIONS = 100_003, 50_021, 4
_MB = 1 << 20


def main() -> None:
    """Print a JSON line for each reading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", default="100000,400000", help="Of the topics, growing.")
    parser.add_argument("--part", type=int, default=25_000, help="Most clicks of a part.")
    parser.add_argument("--reader", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        servers, name, folder = options.reader
        read(_settings(servers, name), Path(folder), options.part)
        return
    say(f"{machine()}, parts of {options.part:,} clicks")
    with LocalBroker() as broker:
        name = f"b{uuid.uuid4().hex[:8]}"
        settings = _settings(broker.bootstrap_servers, name)
        create_topics(settings, partitions=_PARTITIONS, replication=1)
        produced = 0
        for clicks in map(int, options.clicks.split(",")):
            produce(settings, produced, clicks)
            produced = clicks
            with tempfile.TemporaryDirectory() as folder:
                for _ in ("all", "nothing new"):
                    reader = [broker.bootstrap_servers, name, folder]
                    subprocess.run(
                        [
                            *(sys.executable, "-m", "benchmarks.click_cache"),
                            *("--part", str(options.part), "--reader", *reader),
                        ],
                        check=True,
                    )


def produce(settings: Settings, first: int, end: int) -> None:
    """Put clicks on the topic, each user's some time apart."""
    client = producer(settings.kafka, linger_ms=50, batch_size=256 * 1024)
    now_ms = int(time.time() * 1000)
    for n in range(first, end):
        click = Click(f"user-{n * 7919 % _USERS}", f"item-{n * 31 % _ITEMS}", now_ms - n % 1000)
        key, value = click.to_record()
        client.send(settings.kafka.clicks_topic, key=key, value=value)
    client.flush()
    client.close()


def read(settings: Settings, folder: Path, part_clicks: int) -> None:
    """Bring the cache up to date, and print what that took."""
    before = peak_bytes()
    began = time.perf_counter()
    extent = clicks_extent(settings)
    found = ClickCache(folder, settings).update(
        Plan(extent, part_clicks=part_clicks), current=extent
    )
    took_s = time.perf_counter() - began
    parts = list(folder.glob("*.parquet"))
    measured = {
        "new": found.new,
        "kept": found.kept,
        "parts": len(parts),
        "files_mb": round(sum(part.stat().st_size for part in parts) / _MB, 1),
        "seconds": round(took_s, 2),
        "peak_mb": peak_bytes() // _MB,
        "peak_before_mb": before // _MB,
    }
    say(json.dumps(measured))


def _settings(servers: str, name: str) -> Settings:
    topics = ("clicks", "windows", "dead_letters", "releases")
    return load_settings(
        kafka={"bootstrap_servers": servers, **{f"{one}_topic": f"{name}.{one}" for one in topics}}
    )


if __name__ == "__main__":
    main()
