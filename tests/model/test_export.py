"""The exported graph says what the torch model says, and an export that does not is refused."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from encoder.mind_encoder import OUTPUTS
from encoder.release import Release
from training.click_log import ClickLog
from training.experiments import DEFAULT_DATA
from training.export import (
    ExportError,
    check_graph,
    checked_windows,
    export_graph,
)
from training.model import Mind, ServedMind
from training.sequences import Sequences

LENGTH = 50


@pytest.fixture(scope="module")
def real_windows() -> np.ndarray:
    """The windows of Online Retail II as they were early on: int64 (U, 50)."""
    log = ClickLog.from_parquet(DEFAULT_DATA, until_ms=1_262_000_000_000)
    return Sequences.from_log(log, log.item_ids).last_windows(LENGTH)


@pytest.fixture(scope="module")
def model(real_windows: np.ndarray) -> Mind:
    """Far from the start, where routing is sharp and rounding could tip it."""
    model = Mind(int(real_windows.max()), width=64, interests=4, fade=0.1, seed=5)
    with torch.no_grad():
        model.bilinear.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def graph(model: Mind) -> bytes:
    return export_graph(model)


KINDS = {
    "empty": lambda windows: np.zeros_like(windows[:20]),
    "one click": lambda windows: np.where(np.arange(LENGTH) == 0, windows, 0),
    "two clicks": lambda windows: np.where(np.arange(LENGTH) < 2, windows, 0),
    "full": lambda windows: windows[(windows > 0).all(axis=1)],
    "mixed": lambda windows: windows,
    "with unknown items": lambda windows: np.where(np.arange(LENGTH) % 3 == 1, 0, windows),
}


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_onnx_agree(
    model: Mind, graph: bytes, real_windows: np.ndarray, kind: str
) -> None:
    """To 1e-5 in every number, and in every choice, on real windows of each kind."""
    windows = KINDS[kind](real_windows)
    assert len(windows) >= 20
    assert check_graph(graph, model, windows) <= 1e-5

    rows = torch.from_numpy(windows)
    with torch.no_grad():
        expected = ServedMind(model).eval()(model.item_table(), rows, torch.zeros(rows.shape))
        items = model.item_table().numpy()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {"items": items, "rows": windows, "ages": np.zeros(windows.shape, np.float32)}
    for name, one, other in zip(OUTPUTS, session.run(OUTPUTS, feeds), expected, strict=True):
        if one.dtype == np.float32:
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5, err_msg=name)
        else:  # a click torn between two interests may fall either way
            assert np.mean(one == other.numpy()) > 0.999, name


def test_an_average_can_be_served() -> None:
    """The preset without routing is exported as any other, and agrees on windows of all kinds."""
    model = Mind(30, width=8, interests=1, hidden=16, cosine=False, average=True)
    windows = np.random.default_rng(0).integers(0, 31, (40, 6))
    assert check_graph(export_graph(model), model, checked_windows(windows, 6)) <= 1e-5


def test_the_graph_holds_weights_but_not_the_table(model: Mind, graph: bytes) -> None:
    """Its size does not grow with the items, and nothing of it lies outside."""
    assert len(graph) < 200_000
    assert model.table.numel() * 4 > 500_000
    loaded = onnx.load_from_string(graph)
    onnx.checker.check_model(loaded, full_check=True)
    assert [node.name for node in loaded.graph.input][:2] == ["items", "rows"]
    assert not any(tensor.external_data for tensor in loaded.graph.initializer)


def test_windows_checked_before_release_are_of_every_kind(real_windows: np.ndarray) -> None:
    """Empty, one click, every length up to full, and with gaps."""
    windows = checked_windows(real_windows, LENGTH)
    clicks = (windows > 0).sum(axis=1)
    assert set(range(LENGTH + 1)) <= set(clicks.tolist())
    gaps = (windows[:, 0] > 0) & (windows[:, 1] == 0) & (windows[:, 2] > 0)
    assert gaps.sum() > 100


def test_windows_are_checked_for_a_log_of_few_users() -> None:
    """One user with one click is enough to check on."""
    windows = checked_windows(np.array([[3]]), LENGTH)
    assert windows.shape[1] == LENGTH
    assert not windows[0].any()


def test_a_graph_that_differs_is_refused(
    model: Mind, graph: bytes, real_windows: np.ndarray
) -> None:
    """A small change of any weight in the file is found before the release is written."""
    windows = checked_windows(real_windows, LENGTH)
    width = model.table.shape[1]
    weights = [t.name for t in onnx.load_from_string(graph).graph.initializer if width in t.dims]
    assert "model.bilinear" in weights
    assert len(weights) >= 3  # also its product with its transpose, and the directions
    for weight in weights:
        changed = onnx.load_from_string(graph)
        (tensor,) = (t for t in changed.graph.initializer if t.name == weight)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0] *= 1.001
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))
        with pytest.raises(ExportError, match="off by"):
            check_graph(changed.SerializeToString(), model, windows)


def test_the_release_of_the_tests_is_a_real_one(odd_release: Release) -> None:
    """What other tests build on has the outputs that serving asks for."""
    names = [node.name for node in onnx.load(odd_release.encoder_path).graph.output]
    assert names == list(OUTPUTS)
