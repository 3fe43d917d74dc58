"""A release folder is verified before anything in it is used."""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from encoder.item_fields import ItemField, ItemFieldVectors
from encoder.mix import Mix
from encoder.release import (
    Release,
    ReleaseError,
    ReleaseUnavailableError,
    TrainingRecord,
    default_release_name,
    open_release,
    write_release,
)
from encoder.release_store import fetch_release, store_release

NOW = datetime(2026, 11, 24, 11, 30, tzinfo=UTC)
ITEMS = np.array([[0, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
FIELDS = ItemFieldVectors(
    (
        ItemField(name="colour", kind="value", values=("grün", "red")),
        ItemField(name="price", kind="band", edges=(0.1, 2.5)),
    ),
    np.array([[3, 4], [1, 0], [0, 1], [2, 2], [0.1, 0.2]], np.float32),
)

MIX = Mix(interests=3, popular=0.5, own=-2)


def write(folder: Path, **changes: Any) -> Release:
    arguments: dict[str, Any] = {
        "encoder": b"not a graph, but bytes",
        "items": ITEMS,
        "item_ids": ["apple", "pear", "plum"],
        "release": default_release_name(NOW),
        "created_at": NOW,
        "window_length": 5,
        "interests": 2,
        "routing_iterations": 3,
        "training": TrainingRecord(
            since_ms=1, until_ms=2, clicks=3, users=1, preset="default", seed=0
        ),
        "metrics": {"recall_at_50": 0.5},
        "parent": "r20261123_113000",
    }
    return write_release(folder, **(arguments | changes))


def edit_manifest(folder: Path, edit: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def record_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Items, ids, features, shapes and lineage survive the disk."""
    write(tmp_path / "r", features=pa.table({"title": ["Apple", "Pear", None]}))
    release = open_release(tmp_path / "r")
    assert release.name == "r20261124_113000"
    np.testing.assert_array_equal(release.items, ITEMS)
    assert isinstance(release.items, np.memmap)
    assert not release.items.flags.writeable
    assert list(release.item_ids) == ["apple", "pear", "plum"]
    assert release.features().to_pydict() == {
        "item_id": ["apple", "pear", "plum"],
        "title": ["Apple", "Pear", None],
    }
    manifest = release.manifest
    assert (manifest.items, manifest.width, manifest.parent) == (3, 2, "r20261123_113000")
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "encoder.onnx",
        "item_ids.parquet",
        "items.npy",
        "manifest.json",
    ]


def test_item_fields_are_read_back(tmp_path: Path) -> None:
    """With edges and vectors to the bit; a release without them has none, and lists no files."""
    assert write(tmp_path / "without").item_fields is None
    written = write(tmp_path / "r", item_fields=FIELDS)
    assert {"item_fields.json", "item_fields.npy"} <= set(written.manifest.files)
    store_release(written, str(tmp_path / "stored"))
    found = open_release(tmp_path / "stored").item_fields
    assert found is not None
    assert found.fields == FIELDS.fields
    assert found.unit
    np.testing.assert_array_equal(found.vectors, FIELDS.vectors)
    assert found.vector({"colour": "grün"}).tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("item_fields.json", b"[]", "does not describe item fields"),
        ("item_fields.json", b'{"fields": [], "unit": true}', r"float32 \(0, 2\)"),
        ("item_fields.npy", b"no array", "plain numpy array"),
    ],
)
def test_item_fields_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """Changed with the manifest, so that only their content can tell."""
    folder = tmp_path / "r"
    write(folder, item_fields=FIELDS)
    (folder / name).write_bytes(content)
    with pytest.raises(ReleaseError, match="is not the file"):
        open_release(folder)
    edit_manifest(folder, lambda found: found["files"].update({name: record_of(folder / name)}))
    with pytest.raises(ReleaseError, match=message):
        open_release(folder)


def test_a_mix_is_read_back(tmp_path: Path) -> None:
    """With what recent popularity counts for each item."""
    popularity = np.array([0.5, 0, 2], np.float32)
    release = write(tmp_path / "r", mix=MIX, popularity=popularity)
    assert open_release(release.folder).manifest.mix == MIX
    assert release.popularity is not None
    assert release.popularity.tolist() == popularity.tolist()


def test_a_release_without_a_mix_is_one_that_older_versions_read(tmp_path: Path) -> None:
    """They refuse fields that they do not know."""
    release = write(tmp_path / "r")
    assert "mix" not in json.loads((release.folder / "manifest.json").read_text())
    assert (release.manifest.mix, release.popularity) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": MIX},
        {"popularity": np.zeros(3, np.float32)},
        {"mix": MIX, "popularity": np.zeros(2, np.float32)},
        {"mix": MIX, "popularity": np.array([0, np.inf, 0], np.float32)},
    ],
)
def test_a_mix_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """It and its popularity go together, item by item."""
    with pytest.raises(ReleaseError, match=r"popularity\.npy"):
        write(tmp_path / "r", **changes)


def test_item_fields_come_whole(tmp_path: Path) -> None:
    """A manifest that lists codes without vectors is not valid."""
    write(tmp_path / "r", item_fields=FIELDS)
    edit_manifest(tmp_path / "r", lambda found: found["files"].pop("item_fields.npy"))
    with pytest.raises(ReleaseError, match="only one of"):
        open_release(tmp_path / "r")


def test_rows_of_items(tmp_path: Path) -> None:
    """Known items have their row from 1, in the order asked for; unknown ones row 0."""
    rows = write(tmp_path / "r").rows(["plum", "quince", "apple"])
    assert rows.dtype == np.int32
    assert rows.tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": ITEMS.astype(np.float64)}, "must be float32"),
        ({"items": ITEMS[:3]}, "4 rows"),
        ({"items": ITEMS + 1}, "row 0"),
        ({"items": np.where(ITEMS > 0.9, np.nan, ITEMS)}, "finite"),
        ({"item_ids": ["apple", "pear", "apple"]}, "twice"),
        ({"item_ids": ["apple", "pear", ""]}, "non-empty"),
        ({"release": "../r1"}, "release"),
        ({"metrics": {"recall": float("nan")}}, "metrics"),
        ({"features": pa.table({"title": ["Apple"]})}, "3 rows"),
        (
            {"item_fields": ItemFieldVectors(FIELDS.fields, np.zeros((5, 3), np.float32))},
            r"float32 \(5, 2\)",
        ),
        ({"features": pa.table({"item_id": ["a", "b", "c"]})}, "no column item_id"),
    ],
)
def test_a_bad_release_is_not_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """What cannot be opened is refused by the writer, which leaves nothing behind."""
    with pytest.raises(ReleaseError, match=message):
        write(tmp_path / "r", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_never_overwritten(tmp_path: Path) -> None:
    """An existing folder is refused and stays as it was."""
    write(tmp_path / "r")
    with pytest.raises(ReleaseError, match="exists"):
        write(tmp_path / "r", items=ITEMS * 2)
    np.testing.assert_array_equal(open_release(tmp_path / "r").items, ITEMS)


def test_a_release_appears_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last step, a move, there is nothing under its name, nor after that step failed."""

    def rename(draft: Path, target: Path) -> Path:
        assert open_release(draft).name == "r20261124_113000"
        assert not target.exists()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ReleaseError, match="disk full"):
        write(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["encoder.onnx", "items.npy", "item_ids.parquet"])
def test_a_tampered_file_is_refused(tmp_path: Path, name: str) -> None:
    """One flipped bit, at the same size, is found and named."""
    write(tmp_path / "r")
    path = tmp_path / "r" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReleaseError, match=name):
        open_release(tmp_path / "r")


@pytest.mark.parametrize("name", ["encoder.onnx", "items.npy", "item_ids.parquet", "manifest.json"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    """Each file of a release is needed; the error names the one that is not there."""
    write(tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    with pytest.raises(ReleaseError, match=name):
        open_release(tmp_path / "r")


def test_a_wrong_sha256_is_refused(tmp_path: Path) -> None:
    """The manifest's own claim is what a file is held to."""
    write(tmp_path / "r")
    edit_manifest(tmp_path / "r", lambda m: m["files"]["items.npy"].update(sha256="0" * 64))
    with pytest.raises(ReleaseError, match=r"items\.npy"):
        open_release(tmp_path / "r")


def test_a_wrong_size_is_refused(tmp_path: Path) -> None:
    """Size is checked besides the hash."""
    write(tmp_path / "r")
    edit_manifest(tmp_path / "r", lambda m: m["files"]["items.npy"].update(bytes=1))
    with pytest.raises(ReleaseError, match="expected 1 bytes"):
        open_release(tmp_path / "r")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", ".hidden", ""]
)
def test_a_file_name_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A manifest cannot make anyone read, or fetch to, a place outside the release."""
    write(tmp_path / "r")
    (tmp_path / "secret").write_bytes(b"secret")
    record = record_of(tmp_path / "secret")
    edit_manifest(tmp_path / "r", lambda m: m["files"].update({name: record}))
    with pytest.raises(ReleaseError, match="manifest"):
        open_release(tmp_path / "r")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Even with the right content, a file that is a link to elsewhere is not used."""
    write(tmp_path / "r")
    shutil.move(tmp_path / "r" / "items.npy", tmp_path / "items.npy")
    (tmp_path / "r" / "items.npy").symlink_to(tmp_path / "items.npy")
    with pytest.raises(ReleaseError, match="outside"):
        open_release(tmp_path / "r")


def test_a_pickled_table_is_refused(tmp_path: Path) -> None:
    """An items.npy that needs unpickling is not loaded, even where its sha256 is right."""
    write(tmp_path / "r")
    path = tmp_path / "r" / "items.npy"
    np.save(path, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    edit_manifest(tmp_path / "r", lambda m: m["files"].update({"items.npy": record_of(path)}))
    with pytest.raises(ReleaseError, match="plain numpy array"):
        open_release(tmp_path / "r")


@pytest.mark.parametrize(
    "table", [ITEMS.astype(np.float64), ITEMS[:3], np.asfortranarray(ITEMS), ITEMS + 1]
)
def test_a_table_other_than_promised_is_refused(tmp_path: Path, table: np.ndarray) -> None:
    """Another type, shape or order, or a padding row that is not zero, is found at opening."""
    write(tmp_path / "r")
    path = tmp_path / "r" / "items.npy"
    np.save(path, table)
    edit_manifest(tmp_path / "r", lambda m: m["files"].update({"items.npy": record_of(path)}))
    with pytest.raises(ReleaseError, match=r"items\.npy"):
        open_release(tmp_path / "r")


def test_an_unknown_manifest_field_or_version_is_refused(tmp_path: Path) -> None:
    """A manifest of a later format is not half understood."""
    for number, change in enumerate(({"format_version": 2}, {"shiny": True})):
        folder = tmp_path / f"r{number}"
        write(folder)
        edit_manifest(folder, lambda m, change=change: m.update(change))
        with pytest.raises(ReleaseError, match=r"manifest\.json"):
            open_release(folder)


def memory_url(name: str) -> str:
    return f"memory://{name}"


def test_a_local_release_is_opened_where_it_lies(tmp_path: Path) -> None:
    """By path or file URL, without a copy."""
    write(tmp_path / "r")
    for url in (str(tmp_path / "r"), (tmp_path / "r").as_uri()):
        assert fetch_release(url, tmp_path / "cache").folder == tmp_path / "r"
    assert not (tmp_path / "cache").exists()


def test_a_stored_release_is_fetched_once(tmp_path: Path) -> None:
    """Stored under a URL, fetched to the cache, and afterwards only its manifest is read again."""
    store_release(write(tmp_path / "r"), memory_url("once/r"))
    first = fetch_release(memory_url("once/r"), tmp_path / "cache")
    fsspec.filesystem("memory").rm("/once/r/items.npy")
    again = fetch_release(memory_url("once/r"), tmp_path / "cache")
    assert first.folder == again.folder
    np.testing.assert_array_equal(again.items, ITEMS)


def test_what_only_the_trainer_needs_is_fetched_by_the_trainer(tmp_path: Path) -> None:
    """Serving is content without it, and stores the release on without it."""
    release = write(tmp_path / "r", parameters=b"an archive")
    store_release(release, memory_url("to_train/r"))
    served = fetch_release(memory_url("to_train/r"), tmp_path / "cache")
    assert "parameters.npz" in served.manifest.files
    assert not (served.folder / "parameters.npz").exists()
    store_release(served, memory_url("to_train_on/r"))
    whole = fetch_release(memory_url("to_train/r"), tmp_path / "cache", to_train=True)
    assert (whole.folder / "parameters.npz").read_bytes() == b"an archive"
    (whole.folder / "parameters.npz").write_bytes(b"an Archive")
    with pytest.raises(ReleaseError, match=r"parameters\.npz is not the file"):
        open_release(whole.folder)


def test_a_damaged_cache_entry_is_fetched_again(tmp_path: Path) -> None:
    """What went wrong on disk since the last fetch is repaired, not used."""
    store_release(write(tmp_path / "r"), memory_url("damaged/r"))
    folder = fetch_release(memory_url("damaged/r"), tmp_path / "cache").folder
    (folder / "items.npy").write_bytes(b"")
    again = fetch_release(memory_url("damaged/r"), tmp_path / "cache")
    np.testing.assert_array_equal(again.items, ITEMS)


def test_a_tampered_remote_release_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    """Verification comes before a fetched folder gets its name."""
    store_release(write(tmp_path / "r"), memory_url("tampered/r"))
    fsspec.filesystem("memory").pipe_file("/tampered/r/encoder.onnx", b"something else")
    with pytest.raises(ReleaseError, match=r"encoder\.onnx"):
        fetch_release(memory_url("tampered/r"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["../secret", "/tmp/secret", "a/../../secret"])  # noqa: S108
def test_a_remote_manifest_cannot_write_outside_the_cache(tmp_path: Path, name: str) -> None:
    """It is refused before any file that it lists is fetched."""
    write(tmp_path / "r")
    record = record_of(tmp_path / "r" / "items.npy")
    edit_manifest(tmp_path / "r", lambda m: m["files"].update({name: record}))
    where = f"outside-{hashlib.sha256(name.encode()).hexdigest()[:8]}/r"
    remote = fsspec.filesystem("memory")
    remote.put(f"{tmp_path / 'r'}/", f"/{where}/", recursive=True)
    with pytest.raises(ReleaseError, match="manifest"):
        fetch_release(memory_url(where), tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


def test_an_absent_remote_release_is_an_error_not_a_retry(tmp_path: Path) -> None:
    """A URL without a manifest is wrong; trying again would not help."""
    with pytest.raises(ReleaseError, match="does not exist") as caught:
        fetch_release(memory_url("absent/r"), tmp_path / "cache")
    assert not isinstance(caught.value, ReleaseUnavailableError)


def test_storage_that_does_not_answer_can_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out is told apart from a bad release."""
    store_release(write(tmp_path / "r"), memory_url("slow/r"))

    def cat_file(*_: object, **__: object) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", cat_file)
    with pytest.raises(ReleaseUnavailableError, match="no answer"):
        fetch_release(memory_url("slow/r"), tmp_path / "cache")


def test_a_url_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    """The error says what is expected."""
    with pytest.raises(ReleaseError, match="fsspec"):
        fetch_release("gopher://there/r", tmp_path / "cache")
