"""Interests, own items and popularity: how they add up, and what is fitted."""

from pathlib import Path

import numpy as np
import pytest

from encoder.mix import Mix
from tests.tastes import planted_log
from training.benchmark import MIXED, Benchmark, run
from training.click_log import ClickLog
from training.mixing import Clicks, Known, OwnItems, fitted, found
from training.prequential import mixed
from training.preset import TrainingConfig
from training.replay import Replay, clicks_of_days, learn

DAY = 86_400_000
ITEMS = 40


def known_at(moments: int, seed: int = 0) -> Known:
    """Random interests, windows with repetitions and two times of popularity; item 40 is new."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(ITEMS + 1, 8)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[[0, ITEMS]] = 0
    vectors = rng.normal(size=(moments, 3, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    windows = rng.integers(1, 13, (moments, 9))
    windows[np.arange(9) >= rng.integers(0, 10, moments)[:, None]] = 0
    counts = np.where(windows.any(axis=1), rng.integers(1, 4, moments), 0)
    clicks = rng.integers(0, 30, (2, ITEMS + 1))
    clicks[:, 0] = 0
    popularity = np.log1p(clicks).astype(np.float32)
    return Known(table, vectors, counts, windows, popularity, rng.integers(0, 2, moments))


def score(known: Known, mix: Mix, moment: int, item: int) -> float:
    """The rule, item by item."""
    used = known.vectors[moment, : known.counts[moment]]
    near = max((float(vector @ known.table[item]) for vector in used), default=0.0)
    total = mix.interests * near + mix.popular * known.popularity[known.at[moment], item]
    window = [row for row in known.windows[moment].tolist() if row]
    if item in window:
        after = window[::-1].index(item)
        total += mix.own + mix.again * np.log(window.count(item)) + mix.later * np.log1p(after)
        total += mix.alike * near
    return float(total)


def test_own_items_are_counted_from_the_newest() -> None:
    """Each once, with its clicks and those after its newest; padding is no click."""
    own = OwnItems.of(np.array([[3, 5, 3, 0], [0, 0, 0, 0], [7, 7, 7, 2]]))
    assert list(zip(own.moments.tolist(), own.rows.tolist(), strict=True)) == [
        (0, 3),
        (0, 5),
        (2, 2),
        (2, 7),
    ]
    expected = [[1, np.log(2), 0], [1, 0, np.log(2)], [1, 0, 0], [1, np.log(3), np.log(2)]]
    np.testing.assert_allclose(own.features, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "mix",
    [
        Mix(interests=4),
        Mix(popular=2),
        Mix(own=-9),
        Mix(interests=3, popular=0.7, own=1.1, again=0.9, later=-0.4, alike=-2.5),
    ],
)
def test_the_best_by_the_rule_are_found(mix: Mix) -> None:
    """In order, whatever is mixed; users without interests get what is popular."""
    known = known_at(60)
    assert not known.counts.all()
    best = found(known, mix, 10)
    for moment in range(60):
        scores = np.array([score(known, mix, moment, item) for item in range(1, ITEMS + 1)])
        np.testing.assert_allclose(
            scores[best[moment] - 1], np.sort(scores)[::-1][:10], rtol=1e-4, atol=1e-5
        )


def test_serving_scores_as_training_does() -> None:
    """The rule of look-ups, by ids, finds the same items in the same order."""
    mix = Mix(interests=3, popular=0.7, own=1.1, again=0.9, later=-0.4, alike=-2.5)
    known = known_at(60)
    best = found(known, mix, ITEMS)
    for moment in range(60):
        window = [str(row) for row in known.windows[moment].tolist() if row]
        own = mix.of_own(list(reversed(window)))
        popularity = mix.popular * known.popularity[known.at[moment]]
        vectors = known.vectors[moment, : known.counts[moment]]
        near = (vectors @ known.table.T).max(axis=0) if len(vectors) else np.zeros(ITEMS + 1)
        scores = [
            mix.score(float(near[row]), float(popularity[row]), own.get(str(row)))
            for row in best[moment].tolist()
        ]
        np.testing.assert_allclose(scores, sorted(scores, reverse=True), rtol=1e-5, atol=1e-5)
        row = int(best[moment, 0])
        assert scores[0] == pytest.approx(score(known, mix, moment, row), rel=1e-5)


def test_an_item_without_a_vector_is_found_by_its_popularity() -> None:
    """Which is all that is known of it."""
    known = known_at(5)
    known.popularity[:, ITEMS] = 9
    assert (found(known, Mix(interests=5, popular=3), 1) == ITEMS).all()


@pytest.mark.parametrize("at_once", [40_000, 8_000_000])
def test_the_parameters_that_clicks_were_made_with_are_fitted(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another sign than one would guess, too, and however many moments fit the memory."""
    monkeypatch.setattr("training.mixing._SCORES_AT_ONCE", at_once)
    true = Mix(interests=3, popular=0.7, own=-1.5, again=0.9, later=0.5, alike=1)
    moments = 3000
    known = known_at(moments, seed=1)
    rng = np.random.default_rng(2)
    ranked = found(known, true, ITEMS)
    clicked = []
    for moment in range(moments):
        scores = np.array([score(known, true, moment, item) for item in ranked[moment]])
        chances = np.exp(scores - scores.max())
        clicked.append(rng.choice(ranked[moment], 8, p=chances / chances.sum()))
    clicks = Clicks(np.repeat(np.arange(moments), 8)[::-1], np.concatenate(clicked)[::-1])
    values = fitted(known, clicks).weights()
    for name, value in true.weights().items():
        assert values[name] == pytest.approx(value, abs=0.2), name


def test_parts_that_are_left_out_count_nothing() -> None:
    """The others are fitted without them; clicks on items that cannot be found are no help."""
    known = known_at(200)
    clicks = Clicks(np.arange(200), np.where(np.arange(200) % 2, -5, known.windows[:, 0]))
    mix = fitted(known, clicks, ("own",))
    assert (mix.interests, mix.popular, mix.alike) == (0, 0, 0)
    assert mix.own > 1
    assert fitted(known, Clicks(np.arange(200), np.full(200, -1))) == Mix()


def test_popularity_is_of_the_days_before_an_instant() -> None:
    """The instant's own clicks are not in it."""
    log = ClickLog.from_arrays(["u"] * 4, list("abca"), [0, DAY, 2 * DAY, 3 * DAY])
    counts = clicks_of_days(log, np.array([0, 2 * DAY, 3 * DAY]), 2)
    assert counts.tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_mixes_know_nothing_of_what_they_are_measured_on() -> None:
    """Their parameters are the same whatever was clicked after the split."""
    log = planted_log(users=60, clicks=20)
    config = TrainingConfig(window_length=7, width=8, neighbours=5, epochs=0.1, fades=())
    split = Replay.of(log, 0.8).split_ms
    other = np.where(log.timestamps_ms >= split, (log.items + 1) % len(log.item_ids), log.items)
    made = []
    for items in (log.items, other):
        changed = ClickLog.from_arrays(
            [log.user_ids[user] for user in log.users],
            [log.item_ids[item] for item in items],
            log.timestamps_ms,
        )
        replay = Replay.of(changed, 0.8)
        made.append(mixed(replay, learn(replay, config), config))
    assert made[0].mixes == made[1].mixes
    assert len(made[0].mixes) == 5
    assert made[0].found.keys() == made[0].mixes.keys()


def test_what_nobody_clicks_twice_is_not_recommended_again(tmp_path: Path) -> None:
    """The benchmark's mix finds out by itself, and recommends better than interests alone."""
    rng = np.random.default_rng(0)

    def lines(count: int) -> str:
        text = ""
        for user in range(count):
            own = rng.permutation(60)[:25] + 1 + 60 * (user % 2)
            text += f"u{user} {' '.join(map(str, own))}\n"
        return text

    for part, users in (("train", 400), ("valid", 30), ("test", 30)):
        (tmp_path / f"{part}.txt").write_text(lines(users))
    data = Benchmark.read(tmp_path)
    changes = {"width": 16, "epochs": 3.0}
    plain, mix = (run(data, preset, 0, changes)["test"] for preset in ("default", MIXED))
    assert mix["recall_at_20"] > plain["recall_at_20"] + 0.1
    assert mix["recall_at_50"] == 1
