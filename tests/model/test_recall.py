"""Prequential recall, against interests that are known by construction."""

import pytest

from encoder.click import Click
from encoder.mind_encoder import MindEncoder
from mindstream.recall import prequential_recall
from tests.small_release import make_small_release


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MindEncoder:
    folder = tmp_path_factory.mktemp("release") / "r"
    return MindEncoder(make_small_release(folder, items=30, window_length=8))


def recall(encoder: MindEncoder, history: list[Click], replay: list[Click], n: int) -> float:
    return prequential_recall(encoder, history, replay, length=8, n=n)


def test_every_known_item_is_among_all_items(encoder: MindEncoder) -> None:
    """With n as large as the catalogue, only unknown items and new users are missed."""
    history = [Click("u", "item-1", 1)]
    replay = [Click("u", "item-2", 2), Click("u", "unknown", 3), Click("new", "item-3", 4)]
    assert recall(encoder, history, replay, 30) == pytest.approx(1 / 3)


def test_a_click_is_predicted_from_before_itself(encoder: MindEncoder) -> None:
    """A user's first click is a miss although it would find itself; the second finds it."""
    twice = [Click("u", "item-5", 1), Click("u", "item-5", 2)]
    assert recall(encoder, [], twice, 30) == pytest.approx(1 / 2)


def test_clicks_of_one_moment_do_not_predict_each_other(encoder: MindEncoder) -> None:
    """A basket is one prediction."""
    basket = [Click("u", "item-5", 1), Click("u", "item-6", 1)]
    assert recall(encoder, [], basket, 30) == 0.0


def test_nothing_to_predict_is_no_recall(encoder: MindEncoder) -> None:
    """An empty replay does not divide by zero."""
    assert recall(encoder, [], [], 5) == 0.0
