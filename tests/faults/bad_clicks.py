"""Records that can never be applied: set aside, limited in their share, mended and put back."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

from mindstream.environment import environment_of
from mindstream.exit_codes import EXIT_MISCONFIGURED
from mindstream.group import committed_offsets
from tests.deployment import Deployment
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.traffic import Traffic
from tests.fuzzed_clicks import fuzzed_records, produce_fuzzed

_END_S = 120.0


def _fuzzed(ground: Ground) -> Outcome:
    """Half of them broken in every way we know, under a worker that is killed now and then."""
    records = ground.times(2_000, 20_000)
    with ground.deployment() as deployment:
        produce_fuzzed(deployment.settings, fuzzed_records(records, ground.seed()))
        for _ in range(ground.times(1, 5)):
            nth = str(ground.rng.randint(1, 5))
            ground.worker(deployment, "written", nth, instance="w").wait_killed()
        outcome = ground.close(deployment, records)
        letters = len(deployment.dead_letters())
        assert letters == len(outcome.audit.rejected) > records / 4, letters
        return replace(outcome, note=f"{letters} rejected")


def _too_many(ground: Ground) -> Outcome:
    """A broken producer: the worker ends by 78 and does not drain what it sends."""
    with ground.deployment(max_rejected_share=0.25) as deployment:
        with Traffic(deployment, ground.seed()):
            ground.consume(deployment)
        worker = ground.worker(deployment, instance="w")
        worker.wait_for("partitions.taken")
        deployment.produce_raw((f"user-{n % 50}".encode(), b"{") for n in range(3_000))
        assert worker.wait_ended() == EXIT_MISCONFIGURED, worker.log()
        assert "MINDSTREAM_WORKER__MAX_REJECTED_SHARE" in worker.log(), worker.log()
        drained = sum(committed_offsets(deployment.settings, deployment.partitions).values())
        raised = {"MINDSTREAM_WORKER__MAX_REJECTED_SHARE": "1"}
        after = ground.worker(deployment, instance="w", **raised)
        deployment.wait_until_consumed()
        after.end()
        total = sum(committed_offsets(deployment.settings, deployment.partitions).values())
        note = f"{total - drained} of 3000 left to a worker with the limit raised"
        assert total - drained > 1_000, note
        return ground.close(deployment, 1, note)


def _replayed(ground: Ground) -> Outcome:
    """Mended letters, put back by commands that are killed: each once, whatever happens."""
    with ground.deployment() as deployment:
        with Traffic(deployment, ground.seed(), per_s=2_000):
            ground.consume(deployment)
        ground.consume(deployment)
        mended = deployment.folder / "mended.jsonl"
        letters = _mended_letters(deployment)
        mended.write_text("".join(f"{json.dumps(letter)}\n" for letter in letters))
        before = Outcome(0, deployment.audit()).clicks
        killed = 0
        for _ in range(ground.times(2, 20)):
            replaying = _command(deployment, "replay", "--from", str(mended))
            time.sleep(1 + ground.rng.random())  # how far it is by then is the draw
            killed += replaying.poll() is None
            replaying.kill()
            replaying.wait(_END_S)
        put_back = [
            _output(_command(deployment, "replay", "--from", str(mended))) for _ in range(2)
        ]
        assert put_back[1].startswith("0 letters put back"), put_back
        outcome = ground.close(deployment, killed, f"{len(letters)} letters, each put back once")
        assert outcome.clicks - before == len(letters), f"{outcome.clicks - before} put back"
        return outcome


def _mended_letters(deployment: Deployment) -> list[dict[str, object]]:
    lines = _output(_command(deployment, "dead-letters", "--json")).splitlines()
    letters = [json.loads(line) for line in lines]
    for letter in letters:
        letter["value"] += "}"  # what the traffic left out
    return letters


def _command(deployment: Deployment, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mindstream", *arguments],
        env={**os.environ, **environment_of(deployment.settings)},
        stdout=subprocess.PIPE,
        text=True,
    )


def _output(command: subprocess.Popen[str]) -> str:
    said, _ = command.communicate(timeout=_END_S)
    assert command.returncode == 0, said
    return said


FAULTS = [
    Fault("broken records", _fuzzed),
    Fault("too many broken records", _too_many),
    Fault("replay of dead letters killed", _replayed),
]
