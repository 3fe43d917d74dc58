"""Training examples never show what they ask for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.click_log import ClickLog
from training.sequences import Sequences

logs = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 1000)), max_size=60
).map(
    lambda clicks: ClickLog.from_arrays(
        [f"u{c[0]}" for c in clicks], [f"i{c[1]}" for c in clicks], [c[2] for c in clicks]
    )
)


def one_user(*items: str) -> tuple[ClickLog, Sequences]:
    log = ClickLog.from_arrays(["u"] * len(items), items, range(len(items)))
    return log, Sequences.from_log(log, sorted(set(items)))


@given(logs, st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_an_example_is_a_window_and_what_follows_it(
    log: ClickLog, length: int, targets: int, more: int, seed: int
) -> None:
    """Every window is a stretch of one user's clicks, its targets lie within the horizon after."""
    sequences = Sequences.from_log(log, log.item_ids)
    horizon = targets + more
    users = [
        sequences.rows[a:b].tolist()
        for a, b in zip(sequences.starts, sequences.starts[1:], strict=False)
    ]
    allowed = {
        (tuple(clicks[max(0, end - length) : end]), tuple(clicks[end : end + horizon]))
        for clicks in users
        for end in range(1, len(clicks))
    }
    seen = 0
    for batch in sequences.epoch(
        np.random.default_rng(seed),
        batch_size=4,
        window_length=length,
        targets=targets,
        horizon=horizon,
    ):
        assert len(batch.rows) == len(batch.targets) <= 4
        for window, wanted in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
            shown = tuple(row for row in window if row)
            asked = sorted(row for row in wanted if row)
            assert window == [*shown, *[0] * (len(window) - len(shown))]
            assert any(
                shown == before
                and len(asked) == min(len(after), targets)
                and all(asked.count(row) <= after.count(row) for row in asked)
                for before, after in allowed
            )
            seen += 1
    assert seen == len(sequences.example_positions()) == sum(max(0, len(u) - 1) for u in users)


def test_the_next_click_is_the_paper_target() -> None:
    """With one target and a horizon of one, each click is asked for once, after those before it."""
    _, sequences = one_user("a", "b", "c", "d")
    examples = {
        (tuple(window), *target)
        for batch in sequences.epoch(
            np.random.default_rng(0), batch_size=1, window_length=2, targets=1, horizon=1
        )
        for window, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)
    }
    assert examples == {((1,), 2), ((1, 2), 3), ((2, 3), 4)}


def test_an_epoch_is_a_function_of_its_seed() -> None:
    """The same generator state gives the same batches, another a different order."""
    _, sequences = one_user(*"abcdefghijklmnop")

    def epoch(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        batches = sequences.epoch(rng, batch_size=3, window_length=4, targets=2, horizon=5)
        return [row for batch in batches for row in batch.targets.tolist()]

    assert epoch(1) == epoch(1) != epoch(2)


def test_an_unknown_item_is_shown_as_such_and_never_asked_for() -> None:
    """Items outside the table keep their place in the window as row 0."""
    log = ClickLog.from_arrays(["u"] * 4, ["a", "rare", "b", "a"], [1, 2, 3, 4])
    sequences = Sequences.from_log(log, ["a", "b"])
    assert sequences.rows.tolist() == [1, 0, 2, 1]
    assert sequences.example_positions().tolist() == [2, 3]
    assert sequences.last_windows(3).tolist() == [[0, 2, 1]]


def test_newest_windows_of_users_of_all_lengths() -> None:
    """One per user, left-aligned, cut to the newest clicks."""
    log = ClickLog.from_arrays(["a", "b", "b", "b"], ["x", "x", "y", "z"], [1, 1, 2, 3])
    sequences = Sequences.from_log(log, log.item_ids)
    assert sequences.last_windows(2).tolist() == [[1, 0], [2, 3]]
    assert sequences.last_windows(9).tolist() == [[1, 0, 0], [1, 2, 3]]


def test_an_empty_log_has_no_sequences() -> None:
    """And no examples, and no windows."""
    sequences = Sequences.from_log(ClickLog.from_arrays([], [], []), [])
    assert len(sequences) == 0
    assert len(sequences.example_positions()) == 0
    assert len(sequences.last_windows(5)) == 0
