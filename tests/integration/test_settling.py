"""Rows of a predecessor that land after the new owner's are written over, a session later."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import structlog

from consumers.settling import Settling
from encoder.click import Click
from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows
from tests.deployment import DEADLINE_S, T0, Deployment, wait_until


def land_late(deployment: Deployment, user_ids: Sequence[str]) -> None:
    """Two rows of each user that nobody would write, one of them in the last slot."""
    n = len(user_ids)
    rows = InterestRows(
        user_ids=[*user_ids, *user_ids],
        slots=np.repeat([0, 2], n),
        weights=np.full(2 * n, 0.5, np.float32),
        exemplars=["item-1"] * (2 * n),
        updated_at=np.full(2 * n, T0),
        vectors=np.tile(np.eye(1, 8, dtype=np.float32), (2 * n, 1)),
    )
    index = InterestIndex(deployment.settings.milvus)
    index.write_interests(deployment.release.name, rows, [], budget_s=DEADLINE_S)
    index.close()
    assert deployment.audit().differences == 2 * n


def test_users_who_click_no_more_are_written_again(deployment: Deployment) -> None:
    """Some at a time, until all are: of recent windows, and of the first batches."""
    quiet = [f"quiet-{n}" for n in range(300)]
    deployment.produce(Click(user_id, "item-2", T0) for user_id in quiet)
    deployment.consume_all()
    with deployment.worker():
        deployment.produce([Click("first", "item-3", T0)])
        deployment.wait_until_consumed()
        land_late(deployment, [*quiet, "first"])
        wait_until(lambda: deployment.audit().differences == 0, "all users to be written again")


def test_a_click_of_a_user_who_is_due_settles_the_user(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch deletes what may have been left in slots that it knows nothing of.

    Not those who were erased: of them there may be rows in other releases, too.
    """
    settled: set[str] = set()
    done = Settling.done

    def noted(self: Settling, users: Mapping[int, Iterable[str]]) -> list[int]:
        for of_partition in users.values():
            settled.update(of_partition)
        return done(self, users)

    monkeypatch.setattr(Settling, "done", noted)
    monkeypatch.setattr(Settling, "next", lambda *_, **__: None)  # nothing else settles
    deployment.produce_raw([(b"erased", None)], timestamp_ms=T0 - 1)
    deployment.produce([Click("u", "item-2", T0), Click("erased", "item-2", T0)])
    deployment.consume_all()
    with structlog.testing.capture_logs() as logs, deployment.worker():
        wait_until(lambda: any(one["event"] == "partitions.taken" for one in logs), "a takeover")
        land_late(deployment, ["u"])
        time.sleep(deployment.settings.worker.session_timeout_s)  # until users are due
        deployment.produce([Click("u", "item-3", T0 + 1), Click("erased", "item-3", T0 + 1)])
        deployment.wait_until_consumed()
        assert deployment.audit().differences == 0
        wait_until(lambda: bool(settled), "a batch to settle")
    assert settled == {"u"}


def test_partitions_that_never_had_an_owner_have_nothing_to_settle(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users are written once, and nothing is deleted; the next owner cannot rely on that."""
    written: Counter[str] = Counter()
    deleted: list[str] = []
    write = InterestIndex.write_interests

    def noted(
        self: InterestIndex, release: str, rows: InterestRows, stale: Sequence[str], **more: Any
    ) -> None:
        written.update(set(rows.user_ids))
        deleted.extend(stale)
        write(self, release, rows, stale, **more)

    monkeypatch.setattr(InterestIndex, "write_interests", noted)
    users = [f"user-{n}" for n in range(30)]
    deployment.produce(Click(user_id, "item-2", T0) for user_id in users)
    session_s = deployment.settings.worker.session_timeout_s
    with deployment.worker():
        deployment.wait_until_consumed()
        time.sleep(session_s + 1)  # until they would be due
        deployment.produce([Click("late", "item-3", T0)])
        deployment.wait_until_consumed()
    assert written == Counter([*users, "late"])
    assert deleted == []
    with deployment.worker():
        wait_until(lambda: written["late"] == 2, "the next owner to write recent users again")
    assert {"late#1", "late#2"} <= set(deleted)
