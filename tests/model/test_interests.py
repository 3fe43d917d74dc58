"""From windows to rows of the store, against the plain reading of the definition."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.encoding import WindowEncoder
from consumers.packed_window import ItemCodes, pack
from encoder.click import MAX_ID_BYTES
from encoder.interests import (
    compute_interests,
    encoder_inputs,
    interest_counts,
    interest_key,
)
from encoder.mind_encoder import MindEncoder
from encoder.mix import MOST_RECENT, RECENT_BYTES, Mix, recent_of, recent_text
from encoder.window import Window, window_of
from mindstream.audit import columns_of, encode_windows
from tests.small_release import make_small_release

LENGTH = 12
clicks = st.tuples(
    st.integers(1, 10**12), st.integers(1, 30).map(lambda n: f"item-{n}")
)  # items beyond 20 are unknown to the release
window_lists = st.lists(
    st.lists(clicks, max_size=20).map(lambda cs: window_of(cs, length=16)), max_size=6
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MindEncoder:
    folder = tmp_path_factory.mktemp("release") / "r"
    return MindEncoder(make_small_release(folder, items=20, window_length=LENGTH))


@given(window_lists)
@settings(deadline=None)
def test_inputs_are_the_newest_clicks_oldest_first(
    encoder: MindEncoder, windows: list[Window]
) -> None:
    """Rows and ages of each window by itself, padded at the end with zeros."""
    release = encoder.release
    rows, ages = encoder_inputs(columns_of(release, windows), window_length=LENGTH)
    longest = max((min(len(window.clicks), LENGTH) for window in windows), default=0)
    assert rows.shape == ages.shape == (len(windows), longest)
    for number, window in enumerate(windows):
        newest = window.clicks[-LENGTH:]
        padding = [0] * (longest - len(newest))
        assert rows[number].tolist() == [
            *(release.row_of.get(item, 0) for _, item in newest),
            *padding,
        ]
        expected = [(newest[-1][0] - timestamp) / 1000 for timestamp, _ in newest]
        np.testing.assert_array_equal(
            ages[number], np.array([*expected, *padding], np.float64).astype(np.float32)
        )


@given(window_lists)
@settings(deadline=None)
def test_the_number_of_interests_is_known_without_encoding(
    encoder: MindEncoder, windows: list[Window]
) -> None:
    """What stale rows are computed from is what the graph says."""
    columns = columns_of(encoder.release, windows)
    users = [f"u{n}" for n in range(len(windows))]
    _, used = compute_interests(encoder, users, columns)
    np.testing.assert_array_equal(interest_counts(encoder.release, columns), used)


@given(window_lists)
@settings(deadline=None)
def test_rows_are_the_used_slots_of_each_user(encoder: MindEncoder, windows: list[Window]) -> None:
    """Key, weight, exemplar, time and vector; nothing of unused slots."""
    users = [f"u{n}" for n in range(len(windows))]
    rows, used = compute_interests(encoder, users, columns_of(encoder.release, windows))
    expected = [interest_key(u, k) for u, n in zip(users, used, strict=True) for k in range(n)]
    assert rows.keys == expected
    np.testing.assert_allclose(np.linalg.norm(rows.vectors, axis=1), 1, rtol=1e-5)
    for user, window in zip(users, windows, strict=True):
        own = [n for n, owner in enumerate(rows.user_ids) if owner == user]
        known = {item for _, item in window.clicks[-LENGTH:] if item in encoder.release.row_of}
        assert bool(own) == bool(known)
        assert {rows.exemplars[n] for n in own} <= known
        assert {int(rows.updated_at[n]) for n in own} <= {t for t, _ in window.clicks[-1:]}
        if own:
            assert sum(rows.weights[n] for n in own) == pytest.approx(1, abs=1e-5)


@given(window_lists)
@settings(deadline=None)
def test_packed_windows_encode_to_the_bits_of_the_plain_path(
    encoder: MindEncoder, windows: list[Window]
) -> None:
    """The worker's path and the audit's share nothing but the encoder, and agree to the bit."""
    codes = ItemCodes()
    users = {f"u{n}": window for n, window in enumerate(windows)}
    packed = [pack(window, codes) for window in windows]
    encoded = WindowEncoder(encoder, codes).encode(list(users), packed, before=None)
    plain = list(encode_windows(encoder, users))
    assert encoded.rows.keys == [key for rows in plain for key in rows.keys]
    assert encoded.rows.vectors.tobytes() == b"".join(rows.vectors.tobytes() for rows in plain)
    assert encoded.rows.exemplars == [item for rows in plain for item in rows.exemplars]
    slots = encoder.release.manifest.interests
    every_key = {interest_key(user, slot) for user in users for slot in range(slots)}
    assert every_key == set(encoded.rows.keys) | set(encoded.stale_keys)
    assert not set(encoded.rows.keys) & set(encoded.stale_keys)


def test_only_rows_that_were_there_are_stale_when_the_window_before_is_known(
    tmp_path: Path,
) -> None:
    """A window that shrinks to fewer known clicks leaves the slots between."""
    encoder = MindEncoder(make_small_release(tmp_path / "r", items=20, window_length=LENGTH))
    codes = ItemCodes()
    eight = Window(tuple((t, f"item-{t}") for t in range(1, 9)))  # 3 interests
    two = Window(((9, "item-1"), (10, "item-2")))  # 1 interest
    users = ["shrinks", "unknown", "grows", "erased"]
    packed = [pack(one, codes) for one in (two, two, eight, Window((), 5))]
    before = [pack(eight, codes), None, pack(two, codes), pack(two, codes)]
    encoded = WindowEncoder(encoder, codes).encode(users, packed, before)
    unknown = [f"unknown#{slot}" for slot in range(1, encoder.release.manifest.interests)]
    assert encoded.stale_keys == ["shrinks#1", "shrinks#2", *unknown, "erased#0"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> MindEncoder:
    """Reads twelve clicks; own items are those of 14, of windows of 16."""
    folder, mix = tmp_path_factory.mktemp("release") / "m", Mix(own=1, clicks=14)
    return MindEncoder(make_small_release(folder, items=20, window_length=LENGTH, mix=mix))


@given(window_lists)
@settings(deadline=None)
def test_rows_of_releases_with_a_mix_have_the_newest_clicks(
    mixed: MindEncoder, windows: list[Window]
) -> None:
    """In the first slot, newest first, null for items unknown; as many as the mix reads."""
    users = [f"u{number}" for number in range(len(windows))]
    rows, _ = compute_interests(mixed, users, columns_of(mixed, windows))
    assert rows.recent is not None
    assert len(rows.recent) == len(rows)
    for user, slot, text in zip(rows.user_ids, rows.slots.tolist(), rows.recent, strict=True):
        newest = windows[users.index(user)].clicks[-14:]
        known = mixed.release.row_of
        expected = [item if item in known else None for _, item in reversed(newest)]
        assert recent_of(text) == (expected if slot == 0 else [])


def test_recent_clicks_fit_the_field() -> None:
    """Without the oldest, where ids are long; to the byte."""
    longest = json.dumps('"' * MAX_ID_BYTES)
    text = recent_text([longest] * MOST_RECENT)
    kept = len(recent_of(text))
    assert 100 < kept < MOST_RECENT
    assert len(text.encode()) <= RECENT_BYTES < len(text.encode()) + 1 + len(longest)
    wide = json.dumps("ü" * (MAX_ID_BYTES // 2), ensure_ascii=False)
    assert recent_of(recent_text([wide, "null"] * 100)) == ["ü" * (MAX_ID_BYTES // 2), None] * 100
    exact = ['"' + "a" * (RECENT_BYTES - 7) + '"', '"b"']  # brackets, a comma and four quotes
    assert recent_of(recent_text([exact[0][:-2] + '"', exact[1]]))[1:] == ["b"]
    assert recent_of(recent_text(exact))[1:] == []


def test_releases_without_a_mix_say_nothing_of_clicks(encoder: MindEncoder) -> None:
    """Their rows are as they were."""
    window = window_of([(1, "item-1")], length=16)
    rows, _ = compute_interests(encoder, ["u"], columns_of(encoder, [window]))
    assert rows.recent is None
