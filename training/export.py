"""A trained model as an ONNX graph that serving can run, checked against torch.

B users, L window length, K interests, D vector width.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from encoder.mind_encoder import INPUTS, OUTPUTS
from training.model import Mind, ServedMind

OPSET: Final = 20
TOLERANCE: Final = 1e-5
WINDOWS_CHECKED: Final = 256


class ExportError(Exception):
    """The graph could not be made, or does not say what the model says."""


def export_graph(model: Mind) -> bytes:
    """Serialise the served form of a model; the item table is an input, not part of the graph.

    Raises:
        ExportError: the model has a user profile, or torch could not export it.
    """
    if model.profile:
        raise ExportError(
            "the model takes a user profile, and clicks, from which interests are served, carry "
            "none; train without `Sequences.profiles` to export"
        )
    served = ServedMind(model).eval()
    width = model.served_table().shape[1]
    # Sizes above 1: the exporter takes a dimension of 1 for a constant.
    examples = (torch.zeros(3, width), torch.tensor([[1, 2, 0], [1, 0, 0]]), torch.zeros(2, 3))
    dim = torch.export.Dim
    with _without_torchvision_notes(), torch.no_grad():
        program = torch.onnx.export(
            served,
            examples,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes={
                "items": {0: dim("table")},
                "rows": {0: dim("users"), 1: dim("length")},
                "ages": {0: dim.AUTO, 1: dim.AUTO},  # naming equal dimensions twice is refused
            },
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    return bytes(program.model_proto.SerializeToString())


def checked_windows(windows: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Windows to check an export on: empty, one click, full, with gaps, and real ones as they are.

    Args:
        windows: int64 (U, ≤ L), real windows, padded at the end with 0.
        length: L.

    Returns:
        int64 (B, L).
    """
    longest = windows[np.argsort(-(windows > 0).sum(axis=1), kind="stable")[:WINDOWS_CHECKED]]
    even = windows[:: max(1, len(windows) // WINDOWS_CHECKED)][:WINDOWS_CHECKED]
    real = np.zeros((len(longest) + len(even), length), np.int64)
    real[:, : windows.shape[1]] = np.concatenate([longest, even])
    first = np.where(np.arange(length) == 0, real, 0)
    # Shortened to every length in turn, and with every third click unknown.
    lengths = np.arange(len(real)) % (length + 1)
    shortened = np.where(np.arange(length) < lengths[:, None], real, 0)
    gaps = np.where(np.arange(length) % 3 == 1, 0, real)
    return np.concatenate([np.zeros((1, length), np.int64), first[:8], real, shortened, gaps])


def check_graph(graph: bytes, model: Mind, windows: npt.NDArray[np.int64]) -> float:
    """Compare a graph with the model it came from.

    Numbers must agree to `TOLERANCE`. A click that is torn between two interests, or two clicks
    that speak equally for one, may go either way.

    Returns:
        The largest difference found.

    Raises:
        ExportError: they disagree, or the graph yields NaN.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        table = model.served_table().detach()
        rows = torch.from_numpy(windows)
        ages = torch.zeros(rows.shape)
        expected = dict(zip(OUTPUTS, ServedMind(model).eval()(table, rows, ages), strict=True))
        width = model.table.shape[1]
        vectors = table[rows][:, :, :width]
        _, couplings = model.encode(vectors, rows > 0, model.served_logits(vectors))
    feeds = {"items": table.numpy(), "rows": windows, "ages": ages.numpy()}
    named = {node.name for node in session.get_inputs()}
    values = session.run(OUTPUTS, {name: feeds[name] for name in named})
    found = {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, values, strict=True)}

    worst = 0.0
    for name in ("interests", "weights"):
        if not found[name].isfinite().all():
            raise ExportError(f"the exported graph yields {name} that are not finite numbers")
        worst = max(worst, float((found[name] - expected[name]).abs().max()))
    if worst > TOLERANCE:
        raise ExportError(f"the exported graph is off by {worst:.2g}, more than {TOLERANCE:g}")
    if not torch.equal(found["counts"], expected["counts"]):
        raise ExportError("the exported graph counts interests differently")

    mask = rows > 0
    slots = torch.arange(model.interests) < found["counts"].unsqueeze(1)  # (B, K)
    own = found["assignment"].unsqueeze(2) == torch.arange(model.interests)  # (B, L, K)
    torn = couplings.max(dim=2).values - (couplings * own).sum(dim=2)
    if not torch.equal(own.any(dim=2), mask) or float((torn * mask).max()) > TOLERANCE:
        raise ExportError("the exported graph assigns clicks to other interests")
    has_own = own.any(dim=1, keepdim=True)
    eligible = own | (mask.unsqueeze(2) & ~has_own)
    likeness = vectors @ found["interests"][:, :, :width].transpose(1, 2)
    likeness = likeness.masked_fill(~eligible, -torch.inf)
    chosen = likeness.gather(1, found["exemplars"].clamp(min=0).unsqueeze(1)).squeeze(1)  # (B, K)
    short = torch.where(slots, likeness.max(dim=1).values - chosen, 0.0)
    if not torch.equal(found["exemplars"] >= 0, slots) or not bool((short <= TOLERANCE).all()):
        raise ExportError("the exported graph names other exemplars")
    return worst


@contextmanager
def _without_torchvision_notes() -> Iterator[None]:
    """Keep the exporter from noting that torchvision, which nothing here uses, is missing."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
