"""Half an hour of faults near the rate that can be sustained: `python -m tests.faults.soak`.

At the end memory must have stayed flat, no lag may be left, and windows and rows must be those of a
plain fold. Exits with 1 if not.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from kafka import KafkaProducer, TopicPartition

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from encoder.kafka_client import end_offsets, producer
from mindstream.group import committed_offsets
from tests.deployment import ITEMS, T0, Deployment
from tests.faults.ground import Ground
from tests.faults.services import SharedServers
from tests.faults.worker import Worker

_PARTITIONS = 8
_USERS = 5_000
_WARM_UP_S = 20.0
_MEASURE_S = 60.0  # what is produced here, too, takes its part of the machine
_FAULT_EVERY_S = 60.0  # what piled up meanwhile is worked off with the rest of the rate
_QUIET_S = 90.0  # without faults, at the end
_SAMPLE_EVERY_S = 5.0
_REPORT_EVERY_SAMPLES = 12
_TICK_S = 0.05
_MOST_LAG_S = 5.0
_MOST_GROWTH = 0.1  # of a worker's memory
_LIMIT_PER_S = 30_000


class SteadyClicks:
    """A thread that keeps a rate, which may be changed; one record in 200 is broken."""

    def __init__(self, deployment: Deployment, rng: random.Random, per_s: float) -> None:
        """Start it."""
        self.per_s = per_s
        self.produced = 0
        self.failed: list[BaseException] = []
        self._kafka = deployment.settings.kafka
        self._rng = rng
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clicks")
        self._thread.start()

    def stop(self) -> None:
        """Produce no more; returns when all of it is acknowledged."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        client = producer(
            self._kafka,
            linger_ms=20,
            batch_size=1 << 17,
            delivery_timeout_ms=240_000,
            max_block_ms=240_000,
        )
        began, owed = time.monotonic(), 0.0
        while not self._over.wait(_TICK_S):
            now = time.monotonic()
            # What an outage of the broker kept back is not made up for: the rate is the rate.
            owed = min(owed + self.per_s * (now - began), self.per_s)
            began = now
            for _ in range(int(owed)):
                self._send(client)
                self.produced += 1
            owed -= int(owed)
        client.flush()
        client.close()

    def _send(self, client: KafkaProducer) -> None:
        user = f"user-{int(_USERS * self._rng.random() ** 2)}"
        at = T0 + int(self.produced / 10) - self._rng.choice((0, 0, 0, 300))
        item = self._rng.randint(1, ITEMS + 10)
        value: bytes | None = b'{"user_id":"%s","item_id":"item-%d","timestamp":%d}' % (
            user.encode(),
            item,
            at,
        )
        drawn = self._rng.random()
        if drawn < 0.005:
            value = value[:-1]
        elif drawn < 0.0055:
            value = None
        sent = client.send(
            self._kafka.clicks_topic, key=user.encode(), value=value, timestamp_ms=at
        )
        sent.add_errback(self.failed.append)


class Soak:
    """The workers, what is done to them, and what was seen."""

    def __init__(self, ground: Ground, deployment: Deployment) -> None:
        """Start two workers, one of which is never ended: its memory is watched."""
        self._ground = ground
        self._deployment = deployment
        self.steady = ground.worker(deployment, instance="steady")
        self._other = ground.worker(deployment, instance="other")
        self.injected: dict[str, int] = {}
        self.ended: dict[str, int] = {}  # by itself, and how
        self.memory: dict[str, list[float]] = {"worker": [], "Milvus Lite": [], "broker": []}
        for worker in (self.steady, self._other):
            worker.wait_for("partitions.taken")

    def rate(self, seconds: float) -> float:
        """Records that the group commits per second, over some seconds."""
        before, began = self._committed(), time.monotonic()
        time.sleep(seconds)
        return (self._committed() - before) / (time.monotonic() - began)

    def lag(self) -> int:
        """Records on the topic and not yet committed."""
        return self.on_topic() - self._committed()

    def on_topic(self) -> int:
        """Records that the broker has."""
        kafka = self._deployment.settings.kafka
        partitions = range(self._deployment.partitions)
        asked = [TopicPartition(kafka.clicks_topic, partition) for partition in partitions]
        return sum(end_offsets(kafka, asked).values())

    def sample(self) -> None:
        """Note resident memory, in MB."""
        pids = {
            "worker": self.steady.pid,
            "Milvus Lite": self._ground.lite.pid,
            "broker": self._ground.broker.pid,
        }
        for name, pid in pids.items():
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.memory[name].append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    def line(self, seconds: float, produced: int) -> str:
        """Where it stands: lag, what the producer still holds, and the newest sample of memory."""
        memory = ", ".join(f"{name} {values[-1]:.0f} MB" for name, values in self.memory.items())
        on_topic = self.on_topic()
        return (
            f"  {seconds / 60:5.1f} min: {on_topic - self._committed():>9,} clicks behind,"
            f" {produced - on_topic:,} on their way to the broker; {memory}"
        )

    def supervise(self) -> None:
        """Start the other worker again if it has ended; the steady one must run."""
        self.steady.check_running()
        if not self._other.running:
            how = f"exit code {self._other.wait_ended()}"
            self.ended[how] = self.ended.get(how, 0) + 1
            say(f"  a worker ended by itself, {how}: {self._other.log().splitlines()[-1]}")
            self._other = self._started()

    def inject(self) -> None:
        """One fault, drawn."""
        faults = {
            "worker killed": self._kill,
            "worker restarted": self._restart,
            "worker asleep beyond its session": self._sleep,
            "broker slow": lambda: _pause(self._ground.broker.pid, 2.0),
            "Milvus slow": lambda: _pause(self._ground.lite.pid, 2.0),
            "broker killed": self._kill_broker,
        }
        name = self._ground.rng.choice(sorted(faults))
        faults[name]()
        self.injected[name] = self.injected.get(name, 0) + 1

    def end(self) -> None:
        """Both workers must end well."""
        for worker in (self.steady, self._other):
            worker.end()

    def _committed(self) -> int:
        return sum(
            committed_offsets(self._deployment.settings, self._deployment.partitions).values()
        )

    def _kill(self) -> None:
        self._other.kill()
        self._other = self._started()

    def _restart(self) -> None:
        self._other.end()
        self._other = self._started()

    def _sleep(self) -> None:
        _pause(self._other.pid, 10.0)

    def _kill_broker(self) -> None:
        self._ground.broker.kill()
        self._ground.broker.start()

    def _started(self) -> Worker:
        return self._ground.worker(self._deployment, instance="other")


def _pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def run(ground: Ground, *, minutes: float, share: float) -> dict[str, object]:
    """Warm up, measure what can be sustained, then run at a share of it with faults."""
    with ground.deployment(partitions=_PARTITIONS, max_batch_clicks=4096) as deployment:
        soak = Soak(ground, deployment)
        clicks = SteadyClicks(deployment, ground.rng, per_s=_LIMIT_PER_S)
        try:
            time.sleep(_WARM_UP_S)
            sustainable = soak.rate(_MEASURE_S)
            clicks.per_s = 0
            deployment.wait_until_consumed()
            clicks.per_s = share * sustainable
            say(f"sustainable: {sustainable:,.0f} clicks/s; running at {clicks.per_s:,.0f}")
            started, produced = time.monotonic(), clicks.produced
            over = started + 60 * minutes
            following = started + _FAULT_EVERY_S
            while time.monotonic() < over:
                soak.supervise()
                soak.sample()
                if len(soak.memory["worker"]) % _REPORT_EVERY_SAMPLES == 0:
                    say(soak.line(time.monotonic() - started, clicks.produced))
                if following <= time.monotonic() < over - _QUIET_S:
                    soak.inject()
                    following = time.monotonic() + _FAULT_EVERY_S
                time.sleep(_SAMPLE_EVERY_S)
            seconds = time.monotonic() - started
            rate = (clicks.produced - produced) / seconds
        finally:
            clicks.stop()
        lag = soak.lag()
        deployment.wait_until_consumed()
        soak.end()
        outcome = ground.close(deployment, sum(soak.injected.values()))
    for name, count in sorted(soak.injected.items()):
        say(f"  {name:<34} {count:>5}")
    growth = {name: _growth(values) for name, values in soak.memory.items()}
    for name, values in soak.memory.items():
        say(
            f"  memory of {name:<24} {median(values[:12]):6.0f} MB in the first minute,"
            f" {median(values[-12:]):6.0f} MB in the last;"
            f" second quarter to last {growth[name]:+.1%}"
        )
    say(f"  {outcome.audit.report()}")
    return {
        "minutes": round(seconds / 60, 1),
        "sustainable_per_s": round(sustainable),
        "clicks_per_s": round(rate),
        "injected": outcome.injected,
        "ended_by_itself": soak.ended,
        "clicks": outcome.clicks,
        "unsent": len(clicks.failed),
        "lag_when_traffic_ended": lag,
        "lost": outcome.lost,
        "duplicated": outcome.duplicated,
        "wrong_rows": outcome.wrong_rows,
        "memory_growth": {name: round(value, 3) for name, value in growth.items()},
        "failed": [
            name
            for name, failed in (
                ("unsent", clicks.failed),
                ("lost", outcome.lost),
                ("duplicated", outcome.duplicated),
                ("wrong_rows", outcome.wrong_rows),
                ("lag", lag > _MOST_LAG_S * rate),
                ("memory", growth["worker"] > _MOST_GROWTH),
            )
            if failed
        ],
    }


def _growth(values: list[float]) -> float:
    """From the second quarter, when caches are warm, to the last."""
    quarter = max(1, len(values) // 4)
    return median(values[-quarter:]) / median(values[quarter : 2 * quarter]) - 1


def main() -> int:
    """Run, report, and print one JSON line last."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="at the steady rate")
    parser.add_argument("--share", type=float, default=0.8, help="of the sustainable rate")
    parser.add_argument("--seed", type=int, default=0, help="another draw")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mindstream-soak-"))
    say(f"logs are in {folder}, and stay there if anything is wrong or a worker ends by itself")
    with LocalBroker(folder / "broker") as broker, LocalMilvusLite() as lite, ExitStack() as stack:
        rng = random.Random(options.seed)  # noqa: S311  nothing secret
        ground = Ground(broker, lite, folder, rng, quick=False, shared=SharedServers(), stack=stack)
        report = run(ground, minutes=options.minutes, share=options.share)
    say(json.dumps(report))
    if not report["failed"] and not report["ended_by_itself"]:
        shutil.rmtree(folder)
    return int(bool(report["failed"]))


def say(line: str) -> None:
    """Print at once: it takes long."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
