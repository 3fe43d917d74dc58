"""A user's interests are a function of the user's window alone, to the bit."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.mind_encoder import InterestBatch, MindEncoder
from encoder.release import Release
from tests.small_release import make_small_release

LENGTH = 50
windows = st.lists(
    st.lists(st.integers(0, 60), max_size=LENGTH), min_size=1, max_size=40
)  # row 0 is an unknown item


def padded(rows: list[list[int]], length: int) -> npt.NDArray[np.int64]:
    out = np.zeros((len(rows), length), np.int64)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def encode(encoder: MindEncoder, rows: npt.NDArray[np.int64]) -> InterestBatch:
    return encoder.encode(rows, np.zeros(rows.shape, np.float32))


def same_user(one: InterestBatch, all_: InterestBatch, user: int, length: int) -> bool:
    return (
        one.vectors[0].tobytes() == all_.vectors[user].tobytes()
        and one.weights[0].tobytes() == all_.weights[user].tobytes()
        and one.counts[0] == all_.counts[user]
        and np.array_equal(one.assignment[0, :length], all_.assignment[user, :length])
        and np.array_equal(one.exemplars[0], all_.exemplars[user])
    )


@given(windows)
@settings(max_examples=60, deadline=None)
def test_a_batch_equals_its_rows(odd_encoder: MindEncoder, rows: list[list[int]]) -> None:
    """A user encoded alone, without padding, gets the same bits as among others, fully padded."""
    together = encode(odd_encoder, padded(rows, LENGTH))
    for user, row in enumerate(rows):
        alone = encode(odd_encoder, padded([row], len(row)))
        assert same_user(alone, together, user, len(row))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_batch_equals_its_rows(odd_release: Release, threads: int) -> None:
    """The same holds when a batch is large enough to be split among chunks and threads."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 61, (700, LENGTH))
    rows[np.arange(LENGTH) >= rng.integers(0, LENGTH + 1, 700)[:, None]] = 0
    together = encode(MindEncoder(odd_release, threads), rows)
    single = MindEncoder(odd_release)
    for user in range(0, 700, 7):
        assert same_user(encode(single, rows[user : user + 1]), together, user, LENGTH)


@given(windows, st.data())
@settings(max_examples=60, deadline=None)
def test_the_graph_itself_ignores_batch_and_padding(
    odd_session: ort.InferenceSession,
    odd_release: Release,
    rows: list[list[int]],
    data: st.DataObject,
) -> None:
    """Not only the encoder around it: any part of a batch, at any padded length, has equal bits."""
    longest = max(1, max(len(row) for row in rows))
    part = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True))
    length = data.draw(st.integers(longest, LENGTH))
    whole = run(odd_session, odd_release, padded(rows, LENGTH))
    some = run(odd_session, odd_release, padded([rows[place] for place in part], length))
    for name, value in some.items():
        expected = whole[name][part]
        if name == "assignment":
            expected = expected[:, :length]
        assert value.tobytes() == expected.tobytes(), name


def test_no_length_is_an_exception(odd_session: ort.InferenceSession, odd_release: Release) -> None:
    """Every window length, for one user and for a few, has the bits it has when fully padded."""
    rows = np.random.default_rng(4).integers(1, 61, (5, LENGTH))
    for length in range(1, LENGTH + 1):
        whole = run(odd_session, odd_release, np.where(np.arange(LENGTH) < length, rows, 0))
        for users in (1, 2, 5):
            some = run(odd_session, odd_release, np.ascontiguousarray(rows[:users, :length]))
            for name in ("interests", "weights", "counts", "exemplars"):
                assert some[name].tobytes() == whole[name][:users].tobytes(), (name, length)


@pytest.mark.parametrize("interests", [1, 2, 8])
def test_no_number_of_interests_is_an_exception(interests: int, tmp_path: Path) -> None:
    """One interest or many, and windows longer than a block of a product: bits are the same."""
    release = make_small_release(
        tmp_path / "r", items=60, width=24, interests=interests, window_length=160
    )
    session = one_thread(release)
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 61, (24, 160))
    lengths = np.concatenate([np.arange(2, 14), rng.integers(14, 161, 12)])
    whole = run(session, release, np.where(np.arange(160) < lengths[:, None], rows, 0))
    for user, length in enumerate(lengths):
        for padding in {0, 1, min(9, 160 - length)} if length < 160 else {0}:
            window = np.zeros((1, length + padding), np.int64)
            window[0, :length] = rows[user, :length]
            for users in (1, 3):
                some = run(session, release, np.repeat(window, users, axis=0))
                for name in ("interests", "weights", "counts", "exemplars"):
                    expected = np.repeat(whole[name][[user]], users, axis=0)
                    assert some[name].tobytes() == expected.tobytes(), (name, length, padding)


def run(
    session: ort.InferenceSession, release: Release, rows: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.generic]]:
    feeds = {"items": release.items, "rows": rows, "ages": np.zeros(rows.shape, np.float32)}
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.fixture(scope="module")
def odd_session(odd_release: Release) -> ort.InferenceSession:
    return one_thread(odd_release)


def one_thread(release: Release) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(release.encoder_path, options, providers=["CPUExecutionProvider"])
