"""Windows to rows, against a bare call of the session: by batch size and by window length.

And with marks, against the same without.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.ground import ITEMS, LENGTH, Ground, make_release
from benchmarks.results import Result
from consumers.encoding import WindowEncoder
from consumers.packed_window import CLICK_DTYPE, ItemCodes
from encoder.mind_encoder import OUTPUTS, MindEncoder
from encoder.release import Release
from tests.deployment import T0

_BATCHES = (1, 32, 256, 2048)
_SECONDS = 3.0
_MARKS = 64
_MARKED_USERS = 256


def encode(ground: Ground) -> Iterator[Result]:
    """One thread each. The bare call has full windows, and everything bound beforehand."""
    details: dict[str, object] = {"length": LENGTH}
    rng = np.random.default_rng(ground.seed)
    with tempfile.TemporaryDirectory(prefix="mindstream-bench-") as folder:
        release = make_release(Path(folder), "encode")
        codes = ItemCodes()
        for item in range(ITEMS):
            codes.code(f"item-{item + 1}")
        encoder = WindowEncoder(MindEncoder(release), codes)
        marked = make_release(Path(folder), "marked", marks=_MARKS)
        yield _with_marks(encoder, WindowEncoder(MindEncoder(marked), codes), rng)
        for mix in ("full", "mixed"):
            for users in _BATCHES:
                lengths = (
                    np.full(users, LENGTH) if mix == "full" else rng.integers(1, LENGTH + 1, users)
                )
                packed = [_window(rng, int(length)) for length in lengths]
                user_ids = [f"user-{user:08d}" for user in range(users)]
                rate = _rate(lambda ids=user_ids, p=packed: encoder.encode(ids, p, None), users)
                bare = _rate(_bare(release, rng, users), users)
                yield Result(f"encode-{mix}-{users}", rate, "users/s", bare, details=details)
                _same_alone(encoder, user_ids, packed)


def _with_marks(without: WindowEncoder, marked: WindowEncoder, rng: np.random.Generator) -> Result:
    user_ids = [f"user-{user:08d}" for user in range(_MARKED_USERS)]
    packed = [_window(rng, LENGTH) for _ in user_ids]
    one, other = without.encode(user_ids, packed, None), marked.encode(user_ids, packed, None)
    width = one.rows.vectors.shape[1]
    if (one.rows.vectors != other.rows.vectors[:, :width]).any():
        raise SystemExit("marks change more than their columns")
    rates = [
        _rate(lambda one=encoder: one.encode(user_ids, packed, None), _MARKED_USERS)
        for encoder in (without, marked)
    ]
    details: dict[str, object] = {"length": LENGTH, "width": width, "marks": _MARKS}
    return Result(f"encode-marked-{_MARKED_USERS}", rates[1], "users/s", rates[0], details=details)


def _window(rng: np.random.Generator, length: int) -> bytes:
    clicks = np.empty(length, CLICK_DTYPE)
    clicks["timestamp_ms"] = T0 + np.arange(length, dtype=np.int64) * 1000
    clicks["code"] = rng.integers(0, ITEMS, length)
    return bytes(8) + clicks.tobytes()


def _bare(release: Release, rng: np.random.Generator, users: int) -> Callable[[], object]:
    """The session with everything bound already, at full length."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        release.encoder_path, options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        "items": ort.OrtValue.ortvalue_from_numpy(release.items),
        "rows": ort.OrtValue.ortvalue_from_numpy(rng.integers(1, ITEMS, (users, LENGTH))),
        "ages": ort.OrtValue.ortvalue_from_numpy(np.zeros((users, LENGTH), np.float32)),
    }
    known = {node.name for node in session.get_inputs()}
    given = {name: value for name, value in feeds.items() if name in known}
    return lambda: session.run_with_ort_values(list(OUTPUTS), given)


def _rate(call: Callable[[], object], users: int) -> float:
    call()
    calls, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < _SECONDS:
        call()
        calls += 1
    return calls * users / seconds


def _same_alone(encoder: WindowEncoder, user_ids: list[str], packed: list[bytes]) -> None:
    together = encoder.encode(user_ids, packed, None).rows
    for position in range(0, len(user_ids), max(1, len(user_ids) // 20)):
        alone = encoder.encode([user_ids[position]], [packed[position]], None).rows
        theirs = [row for row, user in enumerate(together.user_ids) if user == user_ids[position]]
        if alone.vectors.tobytes() != together.vectors[theirs].tobytes():
            raise SystemExit(f"{user_ids[position]} differs alone")
