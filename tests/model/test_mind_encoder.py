"""What serving gets out of a release's graph."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.mind_encoder import OUTPUTS, MindEncoder
from encoder.release import Release, ReleaseError, write_release

WIDTH = 10  # of vectors without marks


def test_serving_imports_no_torch() -> None:
    """A fresh interpreter that can encode has loaded neither torch nor onnx."""
    code = (
        "import sys, encoder.mind_encoder, encoder.release;"
        "print(sorted({'torch', 'onnx', 'onnxscript'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(st.lists(st.integers(0, 60), max_size=50))
@settings(max_examples=150, deadline=None)
def test_any_window_yields_sound_interests(odd_encoder: MindEncoder, window: list[int]) -> None:
    """No NaN; as many unit vectors as the paper says; shares add up; exemplars are real clicks."""
    rows = np.array([window], np.int64).reshape(1, len(window))
    batch = odd_encoder.encode(rows, np.zeros(rows.shape, np.float32))
    clicks = sum(row > 0 for row in window)
    count = 0 if clicks == 0 else max(1, min(5, clicks.bit_length() - 1))
    assert batch.counts.tolist() == [count]
    assert np.isfinite(batch.vectors).all()
    assert np.isfinite(batch.weights).all()
    lengths = np.linalg.norm(batch.vectors[0, :, :WIDTH], axis=1)
    np.testing.assert_allclose(lengths, np.arange(5) < count, atol=1e-5)
    np.testing.assert_allclose(batch.weights.sum(), float(count > 0), atol=1e-5)
    assert not batch.weights[0, count:].any()
    assert (batch.exemplars[0, count:] == -1).all()
    for slot, position in enumerate(batch.exemplars[0, :count]):
        assert window[position] > 0
        own = [p for p, owner in enumerate(batch.assignment[0]) if owner == slot]
        assert not own or position in own
    for row, slot in zip(window, batch.assignment[0], strict=True):
        assert slot == -1 if row == 0 else 0 <= slot < count


def test_the_exemplar_is_the_likest_of_its_interests_clicks(
    odd_encoder: MindEncoder, odd_release: Release
) -> None:
    """Among the clicks routed to an interest, none has a larger inner product with it."""
    rows = np.random.default_rng(1).integers(1, 61, (50, 50))
    batch = odd_encoder.encode(rows, np.zeros(rows.shape, np.float32))
    checked = 0
    for user in range(50):
        items = odd_release.items[rows[user], :WIDTH]
        likeness = items @ batch.vectors[user, :, :WIDTH].T  # (L, K)
        for slot in range(5):
            own = np.flatnonzero(batch.assignment[user] == slot)
            if len(own):
                best = likeness[own, slot].max()
                assert likeness[batch.exemplars[user, slot], slot] >= best - 1e-6
                checked += 1
    assert checked > 200


def test_of_equal_clicks_the_newest_is_the_exemplar(odd_encoder: MindEncoder) -> None:
    """A window of one item repeated is spoken for by its newest click."""
    rows = np.array([[7] * 5 + [0] * 5])
    batch = odd_encoder.encode(rows, np.zeros(rows.shape, np.float32))
    assert batch.exemplars[0, batch.assignment[0, 0]] == 4


def test_an_unknown_item_within_a_window_changes_nothing(odd_encoder: MindEncoder) -> None:
    """Row 0 in the middle is masked like padding: the interests are those without it."""
    with_gap = np.array([[3, 0, 9, 0, 0, 4]])
    without = np.array([[3, 9, 4]])
    one = odd_encoder.encode(with_gap, np.zeros(with_gap.shape, np.float32))
    two = odd_encoder.encode(without, np.zeros(without.shape, np.float32))
    np.testing.assert_allclose(one.vectors, two.vectors, atol=1e-6)
    assert one.assignment[0, [0, 2, 5]].tolist() == two.assignment[0].tolist()
    assert one.assignment[0, [1, 3, 4]].tolist() == [-1, -1, -1]


def test_an_interest_keeps_its_slot_as_the_window_slides(odd_encoder: MindEncoder) -> None:
    """Served routing is seeded by the item, so dropping the oldest click moves few clicks."""
    rows = np.random.default_rng(2).integers(1, 61, (100, 50))
    ages = np.zeros((100, 49), np.float32)
    before = odd_encoder.encode(rows[:, :-1], ages)
    after = odd_encoder.encode(rows[:, 1:], ages)
    assert np.mean(before.assignment[:, 1:] == after.assignment[:, :-1]) > 0.9


def test_no_users_is_an_empty_batch(odd_encoder: MindEncoder) -> None:
    """B = 0 gives arrays of the right shapes with nothing in them."""
    batch = odd_encoder.encode(np.zeros((0, 50), np.int32), np.zeros((0, 50), np.float32))
    assert batch.vectors.shape == (0, 5, odd_encoder.release.manifest.width)
    assert batch.assignment.shape == (0, 50)


def test_windows_without_clicks_have_no_interest(odd_encoder: MindEncoder) -> None:
    """Windows of no click, and windows of length 0, are fine and empty."""
    for length in (0, 1, 50):
        batch = odd_encoder.encode(np.zeros((3, length), np.int32), np.zeros((3, length), "f4"))
        assert not batch.counts.any()
        assert not batch.vectors.any()
        assert (batch.exemplars == -1).all()


@pytest.mark.parametrize(
    ("rows", "ages", "message"),
    [
        (np.ones((1, 51), np.int64), np.zeros((1, 51), np.float32), "51 clicks"),
        (np.full((1, 3), 61), np.zeros((1, 3), np.float32), "must be 0..60"),
        (np.full((1, 3), -1), np.zeros((1, 3), np.float32), "must be 0..60"),
        (np.ones((1, 3), np.int64), np.zeros((1, 2), np.float32), "must both be"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    odd_encoder: MindEncoder, rows: np.ndarray, ages: np.ndarray, message: str
) -> None:
    """Too long, outside the item table, or ages of another shape: a ValueError says which."""
    with pytest.raises(ValueError, match=message):
        odd_encoder.encode(rows, ages)


def graph_with(inputs: list[str], outputs: list[str]) -> bytes:
    """An ONNX graph of these inputs and outputs."""
    float_1 = (onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [inputs[0]], [name]) for name in outputs],
        "graph",
        [onnx.helper.make_tensor_value_info(name, *float_1) for name in inputs],
        [onnx.helper.make_tensor_value_info(name, *float_1) for name in outputs],
    )
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (b"no graph", "cannot be loaded"),
        (graph_with(["items", "rows", "brands"], list(OUTPUTS)), "brands"),
        (graph_with(["items", "rows"], ["interests"]), "needs interests, counts"),
    ],
)
def test_a_graph_of_another_kind_is_refused(
    odd_release: Release, tmp_path: Path, graph: bytes, message: str
) -> None:
    """What is no graph, wants more than a window, or yields less than interests: named at once."""
    manifest = odd_release.manifest
    release = write_release(
        tmp_path / "r",
        encoder=graph,
        items=odd_release.items,
        item_ids=odd_release.item_ids,
        release="r_other",
        created_at=manifest.created_at,
        window_length=manifest.window_length,
        interests=manifest.interests,
        routing_iterations=manifest.routing_iterations,
        training=manifest.training,
    )
    with pytest.raises(ReleaseError, match=message):
        MindEncoder(release)


def test_the_item_table_is_not_copied(odd_encoder: MindEncoder, odd_release: Release) -> None:
    """The graph reads the mapped file itself, so that workers share its pages."""
    assert odd_encoder._table.data_ptr() == odd_release.items.ctypes.data
