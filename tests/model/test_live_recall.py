"""Recall of clicks as they come, against a replay of the same clicks."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from math import isnan

import pytest

from encoder.click import Click
from encoder.mind_encoder import MindEncoder
from encoder.window import Window, from_wire, merge, to_wire
from mindstream.live_recall import LiveRecall, NewestClicks, SeenClick, new_clicks, popular_items
from mindstream.live_release import LiveRelease
from mindstream.recall import prequential_recall
from tests.small_release import make_small_release

LENGTH = 8


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MindEncoder:
    folder = tmp_path_factory.mktemp("release") / "r"
    return MindEncoder(make_small_release(folder, items=200, window_length=LENGTH))


def clicks_of(n: int, *, seed: int = 0, users: int = 7, items: int = 220) -> list[Click]:
    """Clicks in order; now and then two of one moment, some on items that nobody knows."""
    rng = random.Random(seed)  # noqa: S311  nothing secret
    return [
        Click(f"user-{rng.randrange(users)}", f"item-{rng.randint(1, items)}", 1_000 + number // 2)
        for number in range(n)
    ]


def seen(
    history: Iterable[Click], live: list[Click], *, at_once: int, popular: dict[str, int]
) -> list[SeenClick]:
    """What a follower of windows sees of live clicks that come so many at once."""
    windows: dict[str, Window] = {}
    for click in history:
        own = Window(((click.timestamp_ms, click.item_id),))
        windows[click.user_id] = merge(windows.get(click.user_id, Window()), own, length=LENGTH)
    found = []
    for start in range(0, len(live), at_once):
        before = dict(windows)
        for click in live[start : start + at_once]:
            own = Window(((click.timestamp_ms, click.item_id),))
            windows[click.user_id] = merge(windows.get(click.user_id, Window()), own, length=LENGTH)
        for user, window in windows.items():
            if window != before.get(user):
                old = to_wire(before[user]) if user in before else None
                found += new_clicks(old, to_wire(window), popular, length=LENGTH)
    return found


def judged(encoder: MindEncoder, clicks: Iterable[SeenClick], most: int = 1000) -> LiveRecall:
    newest = NewestClicks(most)
    newest.add(clicks)
    return newest.judge(LiveRelease(encoder))


@pytest.mark.parametrize("at_once", [1, 5])
def test_live_recall_is_that_of_a_replay(encoder: MindEncoder, at_once: int) -> None:
    """Of the same clicks, whether a window brings one of them or several."""
    clicks = clicks_of(400)
    history, live = clicks[:100], clicks[100:200]
    found = judged(encoder, seen(history, live, at_once=at_once, popular={}))
    assert found.clicks == found.observed == len(set(live))
    for n in (20, 50):
        replayed = prequential_recall(encoder, history, live, length=LENGTH, n=n)
        assert found.recall[n] == pytest.approx(replayed)
    assert 0 < found.recall[20] < found.recall[50]
    unknown = sum(int(click.item_id[5:]) > 200 for click in live)
    assert found.unknown == pytest.approx(unknown / len(live))


def test_only_the_newest_count_and_none_is_judged_twice(
    encoder: MindEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that slides gives what its last clicks give, and encodes each click once."""
    live = seen(clicks_of(50), clicks_of(90, seed=1), at_once=1, popular={})
    slid, encoded, live_release = NewestClicks(40), [], LiveRelease(encoder)
    encode = encoder.encode

    def counted(rows, ages):  # type: ignore[no-untyped-def]
        encoded.append(len(rows))
        return encode(rows, ages)

    monkeypatch.setattr(encoder, "encode", counted)
    for start in range(0, len(live), 15):
        slid.add(live[start : start + 15])
        found = slid.judge(live_release)
    assert sum(encoded) == len(live)
    assert found == judged(encoder, live[-40:])


def test_another_release_judges_all_of_them_anew(encoder: MindEncoder) -> None:
    """Its recall does not begin with that of the one before."""
    other = dataclasses.replace(
        encoder.release,
        manifest=encoder.release.manifest.model_copy(update={"release": "r_other"}),
        item_ids=[f"other-{row}" for row in range(1, 201)],
    )
    newest = NewestClicks(1000)
    newest.add(seen(clicks_of(50), clicks_of(90, seed=1), at_once=1, popular={}))
    assert newest.judge(LiveRelease(encoder)).recall[50] > 0
    found = newest.judge(LiveRelease(MindEncoder(other)))
    assert (found.recall[50], found.unknown) == (0.0, 1.0)


def test_what_says_nothing_of_a_release_does_not_count(encoder: MindEncoder) -> None:
    """Clicks up to the end of its training, and first clicks, of which nothing was known."""
    training = encoder.release.manifest.training.model_copy(update={"until_ms": 1_010})
    manifest = encoder.release.manifest.model_copy(update={"training": training})
    later = MindEncoder(dataclasses.replace(encoder.release, manifest=manifest))
    live = clicks_of(60)  # two a moment, from 1,000 on
    clicks = seen([], live, at_once=1, popular={})
    firsts = sum(not from_wire(click.before).clicks for click in clicks)
    assert firsts >= 7
    assert judged(encoder, clicks).clicks == 60 - firsts
    assert judged(later, clicks).observed == 60 - 22
    nothing = judged(later, clicks[:10])
    assert nothing.clicks == 0
    assert isnan(nothing.recall[20])
    assert isnan(nothing.unknown)


def test_popularity_is_of_the_week_before() -> None:
    """Counted over the windows of all users drawn; an item that was popular once is not."""
    day = 86_400_000
    windows = [
        Window(((1, "old"), (20 * day, "a"), (20 * day + 1, "b"))),
        Window(((2, "old"), (21 * day, "b"))),
        Window(((3, "old"),)),
    ]
    assert popular_items(windows) == {"b": 0, "a": 1}
    (click,) = new_clicks(None, to_wire(Window(((5, "b"),))), {"b": 0, "a": 1}, length=LENGTH)
    assert click.popular_rank == 0


def test_recall_and_popularity_are_of_the_same_clicks(encoder: MindEncoder) -> None:
    """All known items are popular here, and a first click counts for neither."""
    popular = {f"item-{rank + 1}": rank for rank in range(50)}
    clicks = seen([], clicks_of(60, items=50), at_once=1, popular=popular)
    found = judged(encoder, clicks)
    assert found.popularity[50] == 1.0
    counted = [click for click in clicks if from_wire(click.before).clicks]
    share = sum(click.popular_rank < 20 for click in counted) / len(counted)
    assert found.popularity[20] == pytest.approx(share)


def test_erased_clicks_predict_nothing() -> None:
    """What comes after an erasure is a first click; a removed window brings none."""
    before = Window(((1, "a"), (2, "b")))
    after = Window(((9, "c"),), erased_at_ms=5)
    (click,) = new_clicks(to_wire(before), to_wire(after), {}, length=LENGTH)
    assert from_wire(click.before).clicks == ()
    assert list(new_clicks(to_wire(before), None, {}, length=LENGTH)) == []


def test_a_click_does_not_predict_itself_or_what_came_before_it() -> None:
    """A late click is predicted from what was earlier still, and clicks of one moment from that."""
    before = Window(((1, "a"), (7, "b")))
    late = merge(before, Window(((5, "c"), (5, "d"))), length=LENGTH)
    clicks = list(new_clicks(to_wire(before), to_wire(late), {}, length=LENGTH))
    assert [click.item_id for click in clicks] == ["c", "d"]
    assert {from_wire(click.before).clicks for click in clicks} == {((1, "a"),)}
