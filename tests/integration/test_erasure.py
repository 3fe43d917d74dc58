"""Forgetting a user: in every release, for good, and provably."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from encoder.click import Click
from encoder.click_history import clicks_extent
from encoder.errors import Misconfigured, Unavailable
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from encoder.kafka_client import producer
from encoder.window import Window, to_wire
from mindstream.cached_clicks import cache_folder, forget_cached, training_lock
from mindstream.environment import environment_of
from mindstream.erasure import Tombstone, Traces, find_traces, write_tombstone
from mindstream.exit_codes import EXIT_DIFFERENT
from mindstream.one_at_a_time import only_one
from tests.deployment import T0, Deployment
from training.click_cache import ClickCache, Plan
from training.click_log import ClickLog

WAIT_S = 30.0


def traces(deployment: Deployment, user: str) -> Traces:
    index = InterestIndex(deployment.settings.milvus)
    found = find_traces(deployment.settings, index, user)
    index.close()
    return found


def erase(deployment: Deployment, user: str) -> Tombstone:
    with deployment.worker():
        return write_tombstone(deployment.settings, user, partition=None, stalled_after_s=WAIT_S)


def cache_clicks(deployment: Deployment) -> Path:
    """What the trainer does with the topic; the cache's folder."""
    settings = deployment.settings
    extent = clicks_extent(settings)
    ClickCache(cache_folder(settings), settings).update(Plan(extent), current=extent)
    return cache_folder(settings)


def clicks(user: str, n: int = 4, *, since: int = T0) -> list[Click]:
    return [Click(user, f"item-{1 + k}", since + k) for k in range(n)]


def test_rows_go_from_every_release_and_stay_away(deployment: Deployment) -> None:
    """Also from those that the worker does not serve; old clicks change nothing; others stay."""
    first = deployment.release.name
    deployment.produce(clicks("u") + clicks("v"))
    deployment.produce_raw([(b"u", b"{broken")])
    deployment.consume_all()
    deployment.publish_next(seed=7)
    deployment.produce(clicks("w"))  # something to wait for, beyond the filling
    deployment.consume_all()
    present = traces(deployment, "u")
    assert sorted(len(rows) for name, rows in present.rows.items() if first in name) == [2, 2]
    assert not present.absent
    erase(deployment, "u")
    deployment.produce(clicks("u"))
    deployment.consume_all()
    found = traces(deployment, "u")
    assert found.absent, found.report()
    assert not any(found.rows.values())
    assert [window.clicks for window in found.windows.values()] == [()]
    assert (found.old_clicks, found.new_clicks, found.dead_letters) == (8, 0, 1)
    assert sum(map(len, traces(deployment, "v").rows.values())) == 4
    assert deployment.audit().differences == 0
    deployment.drop_releases(but=first)


def test_a_user_who_comes_back_starts_afresh(deployment: Deployment) -> None:
    """Clicks from after the erasure are a new beginning, not a trace of the old."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    erase(deployment, "u")
    (window,) = traces(deployment, "u").windows.values()
    deployment.produce(clicks("u", 2, since=window.erased_at_ms + 1))
    deployment.consume_all()
    found = traces(deployment, "u")
    assert found.absent, found.report()
    assert found.new_clicks == 2
    assert sum(map(len, found.rows.values())) > 0


def test_a_row_that_came_back_is_found(deployment: Deployment) -> None:
    """The proof looks at the store itself, not at what should be there."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    index = InterestIndex(deployment.settings.milvus)
    release = deployment.release.name
    rows = index.interests(release, ["u"], 3, "Strong")["u"]
    erase(deployment, "u")
    assert traces(deployment, "u").absent
    rows_again = InterestRows(
        user_ids=[row.user_id for row in rows],
        slots=np.array([row.slot for row in rows]),
        weights=np.array([row.weight for row in rows], np.float32),
        exemplars=[row.exemplar for row in rows],
        updated_at=np.array([row.updated_at for row in rows]),
        vectors=np.stack([row.vector for row in rows]),
    )
    index.write_interests(release, rows_again, [], budget_s=WAIT_S)
    index.close()
    found = traces(deployment, "u")
    assert not found.absent
    assert "the user is not forgotten" in found.report()


def test_a_window_on_another_partition_is_found(deployment: Deployment) -> None:
    """Producers with another partitioner: the tombstone missed the clicks, and the proof tells."""
    erase(deployment, "u")
    (home,) = traces(deployment, "u").windows
    other = (home + 1) % deployment.partitions
    client = producer(deployment.settings.kafka)
    client.send(
        deployment.settings.kafka.windows_topic,
        key=b"u",
        value=to_wire(Window(((T0, "item-1"),))),
        partition=other,
    )
    client.close()
    found = traces(deployment, "u")
    assert not found.absent
    assert f"window on partition {other}: 1 clicks" in found.report()
    with pytest.raises(Misconfigured, match=f"Erase with --partition {other}"):
        erase(deployment, "u")


def test_a_damaged_windows_topic_is_told(deployment: Deployment) -> None:
    """Neither the proof nor the audit says anything of windows that cannot be read."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    client = producer(deployment.settings.kafka)
    client.send(deployment.settings.kafka.windows_topic, key=b"v", value=b"x", partition=0)
    client.close()
    for read in (lambda: traces(deployment, "u"), deployment.audit):
        with pytest.raises(Misconfigured, match=r"windows\[0\] at offset \d+ is no window"):
            read()


def test_without_a_worker_the_tombstone_stays_and_that_is_told(deployment: Deployment) -> None:
    """It is on the topic, and the next worker applies it."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    with pytest.raises(Unavailable, match=r"clicks\[\d\] offset \d+ is written, but group"):
        write_tombstone(deployment.settings, "u", partition=None, stalled_after_s=0.5)
    assert not traces(deployment, "u").absent
    deployment.consume_all()
    assert traces(deployment, "u").absent


def test_what_cannot_be_erased_is_told(deployment: Deployment) -> None:
    """No such partition, or no user id."""
    with pytest.raises(Misconfigured, match=r"--partition 4: .* has 4 partitions"):
        write_tombstone(deployment.settings, "u", partition=4, stalled_after_s=WAIT_S)
    with pytest.raises(Misconfigured, match="is no user id"):
        write_tombstone(deployment.settings, "", partition=None, stalled_after_s=WAIT_S)


def run_erase(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mindstream", "erase", *arguments],
        env={**os.environ, **environment_of(deployment.settings)},
        capture_output=True,
        text=True,
    )


def test_the_commands_erase_and_prove(deployment: Deployment) -> None:
    """`erase --verify` ends with 1 before, and with 0 after `erase`."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    before = run_erase(deployment, "--verify", "u")
    assert before.returncode == EXIT_DIFFERENT, before.stderr
    assert "the user is not forgotten" in before.stdout
    with deployment.worker():
        assert run_erase(deployment, "u").stdout.startswith("erased by "), "it waits for the worker"
    after = run_erase(deployment, "--verify", "--json", "u")
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)["absent"] is True
    assert "not on this machine" in run_erase(deployment, "--verify", "u").stdout


def test_the_command_reaches_the_trainers_cache(deployment: Deployment) -> None:
    """Unless a training reads it; `--verify` tells what is there, and has not changed a byte."""
    settings = deployment.settings
    deployment.produce(clicks("u") + clicks("v"))
    deployment.consume_all()
    folder = cache_clicks(deployment)
    with deployment.worker():
        with only_one(training_lock(settings, 0), "training"):
            assert "a training reads it" in run_erase(deployment, "u").stdout
        before = {path: path.read_bytes() for path in folder.iterdir()}
        found = run_erase(deployment, "--verify", "u")
        assert found.returncode == EXIT_DIFFERENT, found.stderr
        assert f"trainer's cache {folder}: 4 clicks from before" in found.stdout
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        assert f"trainer's cache {folder}: 4 clicks forgotten" in run_erase(deployment, "u").stdout
    after = run_erase(deployment, "--verify", "--json", "u")
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)["cached_clicks"] == 0
    assert set(ClickLog.from_parquet(folder).user_ids) == {"v"}


def test_old_clicks_in_any_file_of_the_cache_are_found(deployment: Deployment) -> None:
    """In one that is no longer needed, too; later ones are none; a damaged file proves nothing."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    folder = cache_clicks(deployment)
    (part,) = folder.glob("*.parquet")
    left = part.with_name("part_00000009.parquet")
    left.write_bytes(part.read_bytes())
    erased = erase(deployment, "u")
    deployment.produce(clicks("u", 2, since=erased.up_to_ms + 1))
    deployment.consume_all()
    assert traces(deployment, "u").cached_before == 8
    forget_cached(deployment.settings, "u", erased.up_to_ms)
    assert not left.exists()
    cache_clicks(deployment)
    found = traces(deployment, "u")
    assert found.absent, found.report()
    assert found.cached is not None
    assert len(found.cached.times_ms) == found.new_clicks == 2
    (part,) = folder.glob("*.parquet")
    part.write_bytes(b"nothing")
    assert not traces(deployment, "u").absent
    assert f"{part.name} cannot be read" in traces(deployment, "u").report()
    with pytest.raises(Misconfigured, match="the next training run reads what is missing again"):
        forget_cached(deployment.settings, "u", erased.up_to_ms)


def test_without_an_erasure_any_cached_click_is_a_trace(deployment: Deployment) -> None:
    """The clicks topic may have let go of them, and of the tombstone."""
    deployment.produce(clicks("u"))
    deployment.consume_all()
    cache_clicks(deployment)
    found = traces(deployment, "u")
    found.windows, found.rows = {}, {}
    assert found.cached_before == 4
    assert not found.absent
