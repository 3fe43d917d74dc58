"""A release: the item table, the encoder and the manifest that belong together, as a folder.

Two releases never share a vector space, so everything that depends on one carries its name.
Nothing in a release is executable: no pickle, and every file is checked against its sha256.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from encoder.errors import Misconfigured, Unavailable
from encoder.item_fields import ItemFieldsRecord, ItemFieldVectors
from encoder.mix import Mix

ENCODER_FILE: Final = "encoder.onnx"
ITEMS_FILE: Final = "items.npy"
ITEM_IDS_FILE: Final = "item_ids.parquet"
MANIFEST_FILE: Final = "manifest.json"
REQUIRED_FILES: Final = (ENCODER_FILE, ITEMS_FILE, ITEM_IDS_FILE)
FIELDS_FILE: Final = "item_fields.json"
FIELD_VECTORS_FILE: Final = "item_fields.npy"
FIELD_FILES: Final = (FIELDS_FILE, FIELD_VECTORS_FILE)
"""Of releases whose items have fields: both or neither."""
POPULARITY_FILE: Final = "popularity.npy"
"""Of releases with a mix: what recent popularity counts, item by item."""
PARAMETERS_FILE: Final = "parameters.npz"
"""For the trainer alone, which goes on from it; a release is whole without."""
UNKNOWN_ROW: Final = 0
"""Row of the item table for padding and for items the release does not know; all zeros."""

ReleaseName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
# A plain name: no separator, no leading dot, so it cannot leave the folder or hide in it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$")]


class ReleaseError(Misconfigured):
    """This release can never be used as it is; the message names the file and what to do."""


class ReleaseUnavailableError(ReleaseError, Unavailable):
    """The release could not be reached just now; trying again may help."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class FileRecord(_Frozen):
    """What a file of the release must look like."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class TrainingRecord(_Frozen):
    """What the release was trained on; event times in milliseconds, both ends included."""

    since_ms: int
    until_ms: int
    clicks: Annotated[int, Field(ge=0)]
    users: Annotated[int, Field(ge=0)]
    preset: str
    seed: int
    hyper_parameters: dict[str, bool | int | FiniteFloat | str] = {}


class Manifest(_Frozen):
    """What is in a release folder and where it came from."""

    format_version: Literal[1] = 1
    release: ReleaseName
    created_at: datetime
    window_length: Annotated[int, Field(ge=1)]
    interests: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=2)]
    items: Annotated[int, Field(ge=0)]
    similarity: Literal["IP"] = "IP"
    routing_iterations: Annotated[int, Field(ge=1)]
    training: TrainingRecord
    metrics: dict[str, FiniteFloat] = {}
    parent: ReleaseName | None = None
    forced: bool = False
    """Whether the gate refused it, and somebody put it into use all the same."""
    mix: Mix | None = None
    """How candidates may be scored by more than interests; older versions know no such field."""
    marks: Annotated[int, Field(ge=0)] = 0
    """How many of a vector's `width` numbers, the last ones, are there to leave out own items."""
    files: dict[FileName, FileRecord]

    @model_validator(mode="after")
    def _lists_the_required_files(self) -> "Manifest":
        missing = [name for name in REQUIRED_FILES if name not in self.files]
        if missing:
            raise ValueError(f"files does not list {', '.join(missing)}")
        if len([name for name in FIELD_FILES if name in self.files]) == 1:
            raise ValueError(f"files lists only one of {' and '.join(FIELD_FILES)}")
        if (POPULARITY_FILE in self.files) != (self.mix is not None):
            raise ValueError(f"there is a mix and {POPULARITY_FILE}, or neither")
        if self.width - self.marks < 2:
            raise ValueError(f"of a width of {self.width}, {self.marks} are marks")
        if MANIFEST_FILE in self.files:
            raise ValueError(f"files lists {MANIFEST_FILE}, which cannot hold its own sha256")
        return self

    def to_json(self) -> str:
        """For the release folder; without what older versions do not know, where it says nothing.

        They refuse a manifest with more fields than they know.
        """
        silent = {name for name in ("mix", "marks") if not getattr(self, name)}
        return self.model_dump_json(indent=2, exclude=silent) + "\n"


@dataclass(frozen=True)
class Release:
    """A verified release on local disk.

    Attributes:
        manifest: shapes, lineage and metrics.
        folder: where its files are.
        items: float32 (N+1, D), mapped read-only from `items.npy`; row 0 is all zeros.
        item_ids: N ids; `item_ids[i]` is row `i + 1` of the table.
        item_fields: makes vectors of items that the release does not know; None if it cannot.
        popularity: float32 (N,), what recent popularity counts in the score of items 1..N; None of
            releases without a mix.
    """

    manifest: Manifest
    folder: Path
    items: npt.NDArray[np.float32] = field(repr=False)
    item_ids: Sequence[str] = field(repr=False)
    item_fields: ItemFieldVectors | None = None
    popularity: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The release's name, as it appears in topics and collection names."""
        return self.manifest.release

    @property
    def encoder_path(self) -> Path:
        """The ONNX graph."""
        return self.folder / ENCODER_FILE

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id to row, 1..N."""
        return {item_id: row for row, item_id in enumerate(self.item_ids, start=1)}

    def rows(self, item_ids: Iterable[str]) -> npt.NDArray[np.int32]:
        """Rows of the given items, int32, in the order given; unknown items get row 0."""
        row_of = self.row_of
        return np.fromiter((row_of.get(item, UNKNOWN_ROW) for item in item_ids), dtype=np.int32)

    @cached_property
    def quoted_ids(self) -> list[str]:
        """By row, 0..N, the item id as JSON; `null` for row 0."""
        return ["null", *(json.dumps(item_id, ensure_ascii=False) for item_id in self.item_ids)]

    def features(self) -> pa.Table:
        """The item table's columns, `item_id` first, in row order 1..N."""
        return pq.read_table(self.folder / ITEM_IDS_FILE)


def default_release_name(created_at: datetime) -> str:
    """A name that sorts by time, such as `r20261124_113000`."""
    return created_at.strftime("r%Y%m%d_%H%M%S")


def write_release(
    folder: Path,
    *,
    encoder: bytes,
    items: npt.NDArray[np.float32],
    item_ids: Sequence[str],
    release: str,
    created_at: datetime,
    window_length: int,
    interests: int,
    routing_iterations: int,
    training: TrainingRecord,
    metrics: dict[str, float] | None = None,
    features: pa.Table | None = None,
    item_fields: ItemFieldVectors | None = None,
    parent: str | None = None,
    further: Mapping[str, bytes] | None = None,
    parameters: bytes | None = None,
    mix: Mix | None = None,
    popularity: npt.NDArray[np.float32] | None = None,
    marks: int = 0,
) -> Release:
    """Write a release folder in one step: readers see all of it or nothing.

    Args:
        folder: the folder to create; it must not exist yet.
        encoder: the ONNX graph, serialised.
        items: float32 (N+1, D), finite, row 0 all zeros.
        item_ids: N distinct ids for rows 1..N.
        release: its name, see `default_release_name`.
        created_at: when, with a time zone.
        window_length: longest window the encoder was trained on.
        interests: K, the most interests a user can have.
        routing_iterations: rounds of routing in the graph.
        training: what it was trained on.
        metrics: held-out measures, finite.
        features: N rows of item features, in row order, without a column `item_id`.
        item_fields: vectors of the values that items' fields have, for items to come.
        parent: the release that this one was trained from.
        further: files for people to look at, by name; serving reads none of them.
        parameters: what the next one is trained from, an archive for the trainer alone.
        mix: how candidates may be scored by more than interests.
        popularity: float32 (N,), finite: what recent popularity counts; goes with `mix`.
        marks: how many of the D numbers, the last ones, are there to leave out own items.

    Raises:
        ReleaseError: what was passed does not make a release, or the folder exists.
    """
    if items.ndim != 2 or items.dtype != np.float32 or items.shape[0] != len(item_ids) + 1:
        raise ReleaseError(
            f"items must be float32 of {len(item_ids) + 1} rows (one for padding and one per item "
            f"id), got {items.dtype} {items.shape}"
        )
    if not np.isfinite(items).all() or items[UNKNOWN_ROW].any():
        raise ReleaseError("items must be finite, and row 0 (padding) all zeros")
    if folder.exists():
        raise ReleaseError(f"{folder} exists; a release is never changed in place, choose another")
    columns: dict[str, Any] = {"item_id": pa.array(item_ids, pa.string())}
    if features is not None:
        if "item_id" in features.column_names or features.num_rows != len(item_ids):
            raise ReleaseError(
                f"features must have {len(item_ids)} rows and no column item_id, got "
                f"{features.num_rows} rows of {features.column_names}"
            )
        columns |= dict(zip(features.column_names, features.columns, strict=True))

    further = further or {}
    if taken := further.keys() & {*REQUIRED_FILES, MANIFEST_FILE}:
        raise ReleaseError(f"further files must not be called {', '.join(sorted(taken))}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (draft / ENCODER_FILE).write_bytes(encoder)
        np.save(draft / ITEMS_FILE, np.ascontiguousarray(items), allow_pickle=False)
        pq.write_table(pa.table(columns), draft / ITEM_IDS_FILE)
        for name, content in further.items():
            (draft / name).write_bytes(content)
        if item_fields is not None:
            _write_fields(draft, item_fields)
        if parameters is not None:
            (draft / PARAMETERS_FILE).write_bytes(parameters)
        if popularity is not None:
            np.save(draft / POPULARITY_FILE, popularity, allow_pickle=False)
        try:
            manifest = Manifest(
                release=release,
                created_at=created_at,
                window_length=window_length,
                interests=interests,
                width=items.shape[1],
                items=len(item_ids),
                routing_iterations=routing_iterations,
                training=training,
                metrics=metrics or {},
                parent=parent,
                mix=mix,
                marks=marks,
                files={file.name: _record(file) for file in sorted(draft.iterdir())},
            )
        except ValidationError as error:
            raise ReleaseError(f"{folder.name}: not a valid manifest: {error}") from error
        (draft / MANIFEST_FILE).write_text(manifest.to_json(), "utf-8")
        open_release(draft)
        draft.chmod(0o755)  # mkdtemp makes it private; a release is read by other users' processes
        for file in draft.iterdir():
            _sync(file)
        _sync(draft)
        try:
            draft.rename(folder)
        except OSError as error:
            raise ReleaseError(f"cannot move the release to {folder}: {error}") from error
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return open_release(folder)


def forced(release: Release) -> Release:
    """Note in a release's manifest that it goes into use though the gate refused it."""
    manifest = release.manifest.model_copy(update={"forced": True})
    draft = release.folder / f".{MANIFEST_FILE}.draft"
    draft.write_text(manifest.to_json(), "utf-8")
    draft.replace(release.folder / MANIFEST_FILE)
    return replace(release, manifest=manifest)


def open_release(folder: Path) -> Release:
    """Verify a release folder (sizes, sha256, shapes) and map its item table.

    Raises:
        ReleaseError: something is missing, changed, or does not fit together.
    """
    manifest = read_manifest(_bytes_of(folder / MANIFEST_FILE), folder / MANIFEST_FILE)
    for name, expected in manifest.files.items():
        if name != PARAMETERS_FILE or (folder / name).exists():
            _verify(folder, name, expected)

    items_path, ids_path = folder / ITEMS_FILE, folder / ITEM_IDS_FILE
    try:
        items = np.load(items_path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ReleaseError(f"{items_path} is not a plain numpy array: {error}") from error
    shape = (manifest.items + 1, manifest.width)
    if items.dtype != np.float32 or items.shape != shape or not items.flags.c_contiguous:
        raise ReleaseError(
            f"{items_path} holds {items.dtype} {items.shape}, but {MANIFEST_FILE} promises "
            f"float32 {shape} in C order; write the release again"
        )
    if items[UNKNOWN_ROW].any():
        raise ReleaseError(f"{items_path}: row 0 stands for padding and must be all zeros")

    try:
        ids: list[Any] = pq.read_table(ids_path, columns=["item_id"]).column(0).to_pylist()
    except (pa.ArrowException, IndexError, OSError) as error:
        raise ReleaseError(f"{ids_path} has no readable column item_id: {error}") from error
    if len(ids) != manifest.items or not all(isinstance(item, str) and item for item in ids):
        raise ReleaseError(f"{ids_path} must hold {manifest.items} ids, non-empty strings")
    if len(set(ids)) != len(ids):
        raise ReleaseError(f"{ids_path} holds an item id twice; write the release again")
    return Release(
        manifest=manifest,
        folder=folder,
        items=items,
        item_ids=ids,
        item_fields=_read_fields(folder, manifest) if FIELDS_FILE in manifest.files else None,
        popularity=_read_popularity(folder, manifest) if manifest.mix else None,
    )


def _write_fields(folder: Path, fields: ItemFieldVectors) -> None:
    record = ItemFieldsRecord(fields=fields.fields, unit=fields.unit)
    (folder / FIELDS_FILE).write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
    vectors = np.ascontiguousarray(fields.vectors, np.float32)
    np.save(folder / FIELD_VECTORS_FILE, vectors, allow_pickle=False)


def _read_fields(folder: Path, manifest: Manifest) -> ItemFieldVectors:
    path, vectors_path = folder / FIELDS_FILE, folder / FIELD_VECTORS_FILE
    try:
        record = ItemFieldsRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ReleaseError(f"{path} does not describe item fields: {error}") from error
    try:
        vectors = np.load(vectors_path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ReleaseError(f"{vectors_path} is not a plain numpy array: {error}") from error
    shape = (sum(one.size for one in record.fields), manifest.width)
    if vectors.dtype != np.float32 or vectors.shape != shape or not np.isfinite(vectors).all():
        raise ReleaseError(
            f"{vectors_path} holds {vectors.dtype} {vectors.shape}, but must hold finite numbers, "
            f"float32 {shape}; write the release again"
        )
    return ItemFieldVectors(record.fields, vectors, record.unit)


def _read_popularity(folder: Path, manifest: Manifest) -> npt.NDArray[np.float32]:
    path = folder / POPULARITY_FILE
    try:
        popularity: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ReleaseError(f"{path} is not a plain numpy array: {error}") from error
    shape = (manifest.items,)
    if (
        popularity.dtype != np.float32
        or popularity.shape != shape
        or not np.isfinite(popularity).all()
    ):
        raise ReleaseError(
            f"{path} holds {popularity.dtype} {popularity.shape}, but must hold finite numbers, "
            f"float32 {shape}; write the release again"
        )
    return popularity


def read_manifest(raw: bytes, where: Path | str) -> Manifest:
    """A manifest from its JSON.

    Raises:
        ReleaseError: it is not valid; names `where` it was.
    """
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ReleaseError(f"{where} is not a valid manifest: {error}") from error


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ReleaseError(f"{path} does not exist; is this a release folder?") from error
    except OSError as error:
        raise ReleaseUnavailableError(f"cannot read {path}: {error}") from error


def _verify(folder: Path, name: str, expected: FileRecord) -> None:
    path = folder / name
    try:
        path.resolve(strict=True).relative_to(folder.resolve(strict=True))
        found = _record(path)
    except FileNotFoundError as error:
        raise ReleaseError(f"{path} is missing; fetch the release again") from error
    except ValueError as error:
        raise ReleaseError(f"{path} points outside the release folder; do not use it") from error
    except OSError as error:
        raise ReleaseUnavailableError(f"cannot read {path}: {error}") from error
    if found != expected:
        raise ReleaseError(
            f"{path} is not the file that {MANIFEST_FILE} describes ({found.bytes} bytes, sha256 "
            f"{found.sha256[:12]}…; expected {expected.bytes} bytes, {expected.sha256[:12]}…); "
            "fetch the release again"
        )


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(sha256=digest, bytes=path.stat().st_size)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
