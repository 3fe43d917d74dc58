"""The commands, one after another, as a newcomer would type them."""

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from deploy.loopback import free_ports
from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.release import open_release
from encoder.settings import MilvusSettings, load_settings
from lookup import Lookup
from mindstream.exit_codes import EXIT_DIFFERENT, EXIT_MISCONFIGURED
from mindstream.group import wait_until_consumed
from mindstream.replay import FreshnessProbe, replay
from mindstream.worker_process import WorkerProcess
from tests.deployment import wait_until

T0 = 1_700_000_000_000


def run(
    *arguments: str, environment: Mapping[str, str], code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mindstream", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def environment(
    broker: LocalBroker, milvus_lite: LocalMilvusLite, tmp_path: Path
) -> dict[str, str]:
    name = f"c{uuid.uuid4().hex[:8]}"
    (port,) = free_ports(1)
    return {
        "MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "MINDSTREAM_KAFKA__CLICKS_TOPIC": f"{name}.clicks",
        "MINDSTREAM_KAFKA__WINDOWS_TOPIC": f"{name}.windows",
        "MINDSTREAM_KAFKA__DEAD_LETTERS_TOPIC": f"{name}.dead-letters",
        "MINDSTREAM_KAFKA__RELEASES_TOPIC": f"{name}.releases",
        "MINDSTREAM_KAFKA__ITEMS_TOPIC": f"{name}.items",
        "MINDSTREAM_MILVUS__URI": milvus_lite.uri,
        "MINDSTREAM_RELEASES__URL": str(tmp_path / "releases"),
        "MINDSTREAM_RELEASES__CACHE": str(tmp_path / "cache"),
        "MINDSTREAM_WORKER__GROUP_ID": name,
        "MINDSTREAM_WORKER__HTTP_PORT": str(port),
        "MINDSTREAM_WORKER__SESSION_TIMEOUT_S": "6",  # which another release waits for
        "MINDSTREAM_WINDOW_LENGTH": "10",
    }


def some_clicks() -> list[Click]:
    """Of users with two of four tastes each, for ten items each."""
    rng = random.Random(0)  # noqa: S311  nothing secret
    clicks = []
    for n in range(2000):
        user = rng.randrange(60)
        taste = (user + rng.randrange(2)) % 4
        clicks.append(Click(f"u{user}", f"i{10 * taste + rng.randrange(10)}", T0 + 1000 * n))
    return clicks


@pytest.mark.timeout(600)  # twenty processes, one after the other
def test_topics_train_worker_lookup_audience_audit(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From no topics to answers, through the commands alone."""
    assert (
        run("topics", "create", "--partitions", "2", environment=environment).stdout.count(
            "created"
        )
        == 5
    )
    assert "all topics exist" in run("topics", "create", environment=environment).stdout
    clicks = some_clicks()
    table = pa.table(
        {
            "user_id": [click.user_id for click in clicks],
            "item_id": [click.item_id for click in clicks],
            "timestamp": [click.timestamp_ms for click in clicks],
        }
    )
    pq.write_table(table, tmp_path / "clicks.parquet")
    trained = json.loads(
        run("train", "--parquet", str(tmp_path / "clicks.parquet"), environment=environment).stdout
    )
    assert trained["evaluated_users"] > 0
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    worker = WorkerProcess(settings, tmp_path / "worker.log")
    worker.start(ready_within_s=60)
    try:
        with Lookup(settings.milvus) as lookup:
            probe = FreshnessProbe(lookup, {click.item_id for click in clicks})
            probe.start([])
            replay(settings, clicks, clicks_per_s=0, produced=probe.produced)
            wait_until_consumed(settings, 2, stalled_after_s=60)
            probe.finish()
        assert probe.seconds
        assert all(second > 0 for second in probe.seconds)
        # The worker counts a batch at its next look, a moment after it was committed.
        wait_until(
            lambda: worker.metrics()["mindstream_clicks_total"] == len(clicks), "all to be counted"
        )
        metrics = worker.metrics()
        assert metrics["mindstream_freshness_seconds_count"] == len(clicks)
        assert metrics["mindstream_ready"] == 1
        found = json.loads(run("lookup", "u1", "--json", environment=environment).stdout)
        assert found["release"] == trained["release"]
        assert sum(i["weight"] for i in found["interests"]) == pytest.approx(1, abs=1e-3)
        assert len(found["items"]) == 40
        assert "nearest items" in run("lookup", "u1", environment=environment).stdout
        users = json.loads(run("audience", "i1", "--json", environment=environment).stdout)
        assert len(users["users"]) == 50
        assert "0 differences" in run("audit", environment=environment).stdout
        run("lookup", "nobody", environment=environment, code=EXIT_DIFFERENT)
        run("audience", "nothing", environment=environment, code=EXIT_DIFFERENT)
        # Another one, from the topic, which readers go over to, and back.
        done = run("train", environment=environment)
        assert "2,000 new clicks of" in done.stderr
        assert "and 0 from the cache" in done.stderr.replace("\n", " ")
        relearnt = json.loads(done.stdout)
        assert relearnt["release"] != trained["release"]
        assert relearnt["item_cosine"] > 0.9
        found = json.loads(run("lookup", "u1", "--json", environment=environment).stdout)
        assert found["release"] == relearnt["release"]
        listed = run("release", "list", environment={**environment, "COLUMNS": "200"}).stdout
        assert listed.count("2 of 2") == 2
        run("release", "rollback", environment=environment)
        again = run("release", "rollback", environment=environment, code=EXIT_MISCONFIGURED)
        assert f"already, from {relearnt['release']}" in again.stderr.replace("\n", " ")
        found = json.loads(run("lookup", "u1", "--json", environment=environment).stdout)
        assert found["release"] == trained["release"]
        proof = json.loads(run("release", "verify", environment=environment).stdout)
        assert (proof["release"], proof["sampled"]) == (trained["release"], 60)
        used = run("release", "use", relearnt["release"], environment=environment).stdout
        assert json.loads(used)["rows"] == proof["rows"]
        told = json.loads(run("release", "drift", environment=environment).stdout)
        assert (told["release"], told["before"]) == (relearnt["release"], trained["release"])
        assert told["warm"]
        assert told["item_cosine"] == pytest.approx(relearnt["item_cosine"], abs=0.001)
        dropped = run("release", "prune", "--grace-s", "0", environment=environment).stdout
        assert dropped.split() == ["dropped", trained["release"]]
    finally:
        worker.stop()
    assert "worker.stopped" in worker.log_tail()
    assert '"level": "error"' not in worker.log_tail()
    index = InterestIndex(settings.milvus)
    assert not index.has_release(trained["release"])
    index.drop_release(relearnt["release"])
    index.close()


def test_a_release_that_falls_behind_is_refused_and_kept(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """With its report; when forced it goes into use, and its manifest says so."""
    run("topics", "create", "--partitions", "2", environment=environment)
    rng = random.Random(0)  # noqa: S311  nothing secret
    # Three items that all click at first and at last, and in between, which is what the window
    # holds, any others.
    rows = [
        (f"u{user}", f"i{rng.randrange(3) if day < 5 or day == 19 else rng.randrange(3, 400)}", day)
        for day in range(20)
        for user in range(200)
    ]
    users, items, days = map(list, zip(*rows, strict=True))
    times = [T0 + 86_400_000 * day for day in days]
    path = tmp_path / "clicks.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
    hasty = {
        **environment,
        "MINDSTREAM_TRAINER__EXAMPLES": "1",
        "MINDSTREAM_WINDOW_LENGTH": "1",
    }
    arguments = ("train", "--parquet", str(path))
    refused = run(*arguments, environment=hasty, code=EXIT_DIFFERENT)
    assert "behind popularity by" in refused.stderr.replace("\n", " ")
    (kept,) = (tmp_path / "cache" / "refused").iterdir()
    report = json.loads((kept / "gate.json").read_text())
    assert report["users"] > 100
    assert report["reasons"]
    assert not (tmp_path / "releases").exists()
    put = json.loads(run(*arguments, "--force", environment=hasty).stdout)
    folder = tmp_path / "releases" / put["release"]
    assert json.loads((folder / "manifest.json").read_text())["forced"]
    assert json.loads((folder / "gate.json").read_text())["forced"]


@pytest.mark.parametrize(
    ("arguments", "variable", "value", "says"),
    [
        (["worker"], "MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS", "nowhere", "host:port"),
        (["worker"], "MINDSTREAM_WORKR", "1", "MINDSTREAM_WORKR: no such setting"),
        (["worker"], "MINDSTREAM_KAFKA__CLICKS_TOPIC", "absent", "no topic absent"),
        (["train", "--parquet", "absent.parquet"], "LANG", "C", "absent.parquet"),
        (["train", "--every", "1h"], "LANG", "C", "has no topic"),
        (["train", "--every", "often"], "LANG", "C", "--every 'often'"),
        (["lookup", "u"], "MINDSTREAM_MILVUS__URI", "store", "end in .db"),
        (["lookup", "u"], "MINDSTREAM_MILVUS", "http://127.0.0.1", "milvus"),
        (["demo", "--folder", "tests"], "LANG", "C", "not a demonstration's"),
    ],
)
def test_what_cannot_work_is_told_in_one_message(
    environment: dict[str, str], arguments: list[str], variable: str, value: str, says: str
) -> None:
    """No traceback, the thing at fault by name, and an exit code that says restarting is no use."""
    done = run(*arguments, environment={**environment, variable: value}, code=EXIT_MISCONFIGURED)
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_the_trainer_goes_on_after_a_run_without_clicks(environment: dict[str, str]) -> None:
    """With --every; it says when the next is due."""
    run("topics", "create", environment=environment)
    trainer = subprocess.Popen(
        [sys.executable, "-m", "mindstream", "train", "--every", "6h"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert trainer.stderr is not None
        lines = list(takewhile(lambda line: "next run is due" not in line, trainer.stderr))
        assert "failed: " in lines[-1]
        assert "holds no valid clicks" in lines[-1]
        assert trainer.poll() is None
    finally:
        trainer.kill()
        trainer.communicate()


def test_a_worker_stops_within_its_budget_while_it_waits_for_a_release(
    environment: dict[str, str],
) -> None:
    """SIGTERM is heard before the first release, too."""
    run("topics", "create", environment=environment)
    worker = subprocess.Popen(
        [sys.executable, "-m", "mindstream", "worker"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    with worker.stderr as log:
        for line in log:
            if "release.awaited" in line:
                worker.send_signal(signal.SIGTERM)
                break
        log.read()
    assert worker.wait(60) == 0


def test_a_release_is_trained_with_the_fields_of_the_items_topic(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """It gives vectors to items that nobody has clicked, from those fields alone."""
    run("topics", "create", "--partitions", "2", environment=environment)
    clicks = some_clicks()
    table = {
        "user_id": [click.user_id for click in clicks],
        "item_id": [click.item_id for click in clicks],
        "timestamp": [click.timestamp_ms for click in clicks],
    }
    pq.write_table(pa.table(table), tmp_path / "clicks.parquet")
    items = sorted({click.item_id for click in clicks})
    lines = [
        json.dumps({"item_id": item, "title": f"{('red', 'blue')[n % 2]} cup", "price": n})
        for n, item in enumerate(items)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    loaded = run("items", "load", str(tmp_path / "items.jsonl"), environment=environment).stdout
    assert loaded == f"{len(items)} items\n"
    fields = {"MINDSTREAM_TRAINER__ITEM_FIELDS": '{"title": "words", "price": "band"}'}
    trained = json.loads(
        run(
            "train",
            "--parquet",
            str(tmp_path / "clicks.parquet"),
            environment={**environment, **fields},
        ).stdout
    )
    release = open_release(Path(environment["MINDSTREAM_RELEASES__URL"]) / trained["release"])
    assert release.item_fields is not None
    assert [field.name for field in release.item_fields.fields] == ["title", "price"]
    assert release.item_fields.vector({"title": "a red one"}).any()
    index = InterestIndex(MilvusSettings(uri=environment["MINDSTREAM_MILVUS__URI"]))
    index.drop_release(trained["release"])
    index.close()
