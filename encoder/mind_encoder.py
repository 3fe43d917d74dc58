"""The encoder in service: windows in, interests out, by ONNX Runtime.

B users, L window length, K interests, D vector width.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from encoder.further_items import FurtherItems
from encoder.release import Release, ReleaseError

INPUTS: Final = ("items", "rows", "ages")
OUTPUTS: Final = ("interests", "counts", "weights", "assignment", "exemplars")
CHUNK_USERS: Final = 128
"""Users per call of the graph: keeps its tensors in cache and its memory bounded."""
LENGTH_STEP: Final = 8
"""Windows are padded to a multiple of this, so that the graph sees few distinct shapes."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class InterestBatch:
    """Interests of B users, a pure function of each user's window.

    Attributes:
        vectors: float32 (B, K, D), of length 1 up to their marks; zero in unused slots.
        counts: int64 (B,), how many of the K slots are used: 0 for a window without known clicks.
        weights: float32 (B, K), share of the window routed to each interest; 0 in unused slots.
        assignment: int64 (B, L), the slot each click went to; -1 where the row is 0.
        exemplars: int64 (B, K), position in the window of the click that speaks most for the
            interest; -1 in unused slots.
        marks: how many of the D numbers, the last ones, are -1 for the user's own items.
    """

    vectors: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    assignment: npt.NDArray[np.int64]
    exemplars: npt.NDArray[np.int64]
    marks: int = 0

    def mean_cosine(self) -> float:
        """Between the interests of one user, over users who have several; 1: all are the same."""
        several = self.counts > 1
        if not several.any():
            return 0.0
        counts = self.counts[several].astype(np.float64)
        width = self.vectors.shape[2] - self.marks
        sums = self.vectors[several, :, :width].sum(axis=1)  # unused slots are zero
        pairs = (np.square(sums).sum(axis=1) - counts) / (counts * (counts - 1))
        return float(pairs.mean())


class MindEncoder:
    """Encodes windows with a release's graph and item table.

    A user's result has the same bits alone or among others and whatever the padding. `encode` may
    be called from several threads, while nothing is put into `further`; it releases the interpreter
    lock while the graph runs.

    Attributes:
        further: items that the release was not trained on, and that it can encode all the same.
    """

    def __init__(self, release: Release, threads: int = 1) -> None:
        """Load the graph, to run on so many threads.

        Raises:
            ReleaseError: the graph cannot be loaded or is not an encoder of this version.
        """
        options = ort.SessionOptions()
        # Set explicitly: ONNX Runtime would count the machine's cores, not the container's.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # plans are kept per shape, and shapes vary
        options.log_severity_level = 3
        self._session = _session(release, options)
        self._inputs = frozenset(node.name for node in self._session.get_inputs())
        self._table = ort.OrtValue.ortvalue_from_numpy(release.items)  # no copy: the mapped pages
        self._items = release.items  # keeps the mapping alive as long as the session reads it
        self._shape = release.manifest.interests, release.manifest.width
        self._window_length = release.manifest.window_length
        self.release = release
        self.further = FurtherItems(release)

    def rows(self, item_ids: Iterable[str]) -> npt.NDArray[np.int32]:
        """Rows of the given items, int32, in the order given; unknown items get row 0."""
        own, further = self.release.row_of, self.further
        found = (own.get(item_id) or further.row(item_id) for item_id in item_ids)
        return np.fromiter(found, np.int32)

    def item_ids(self, rows: Iterable[int]) -> list[str]:
        """The items in the given rows, none of which is 0."""
        own: Sequence[str] = self.release.item_ids
        count = len(own)
        return [own[row - 1] if row <= count else self.further.item_id(row) for row in rows]

    def quoted(self, row: int) -> str:
        """The item in a row as JSON; `null` for row 0."""
        own = self.release.quoted_ids
        return (
            own[row]
            if row < len(own)
            else json.dumps(self.further.item_id(row), ensure_ascii=False)
        )

    def encode(self, rows: npt.NDArray[np.integer], ages: npt.NDArray[np.float32]) -> InterestBatch:
        """Encode B windows.

        Args:
            rows: int32 or int64 (B, L), rows of the item table or of `further`, oldest click first,
                padded at the end with 0; unknown items are 0 too. L is at most the release's window
                length.
            ages: float32 (B, L), seconds between each click and the window's newest.

        Raises:
            ValueError: shapes differ, windows are too long, or a row is not in the table.
        """
        users, length = self._check(rows, ages)
        slots, width = self._shape
        batch = InterestBatch(
            vectors=np.zeros((users, slots, width), np.float32),
            counts=np.zeros(users, np.int64),
            weights=np.zeros((users, slots), np.float32),
            assignment=np.full((users, length), -1, np.int64),
            exemplars=np.full((users, slots), -1, np.int64),
            marks=self.release.manifest.marks,
        )
        if not rows.size:
            return batch
        # Windows of similar length go together, since the work grows with the padded length.
        known = rows != 0
        lengths = np.where(known.any(axis=1), length - known[:, ::-1].argmax(axis=1), 0)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, users, CHUNK_USERS):
            chunk = order[start : start + CHUNK_USERS]
            longest = int(lengths[chunk[-1]])
            if longest == 0:
                continue
            padded = -(-longest // LENGTH_STEP) * LENGTH_STEP
            vectors, counts, weights, assignment, exemplars = self._run(
                _padded(rows[chunk, :longest], padded, np.int64),
                _padded(ages[chunk, :longest], padded, np.float32),
            )
            batch.vectors[chunk] = vectors
            batch.counts[chunk] = counts
            batch.weights[chunk] = weights
            batch.assignment[chunk, :longest] = assignment[:, :longest]
            batch.exemplars[chunk] = exemplars
        return batch

    def _run(
        self, rows: npt.NDArray[np.integer], ages: npt.NDArray[np.generic]
    ) -> list[npt.NDArray[np.generic]]:
        table = self._table
        # The mapped table is never copied: a chunk that has other rows gets a table of its own.
        if (part := self.further.table_of(rows)) is not None:
            table, rows = ort.OrtValue.ortvalue_from_numpy(part[0]), part[1]
        feeds = {
            "items": table,
            "rows": ort.OrtValue.ortvalue_from_numpy(rows),
            "ages": ort.OrtValue.ortvalue_from_numpy(ages),
        }
        # A graph has just the inputs its model reads.
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        outputs = self._session.run_with_ort_values(list(OUTPUTS), feeds)
        return [output.numpy() for output in outputs]

    def _check(
        self, rows: npt.NDArray[np.integer], ages: npt.NDArray[np.float32]
    ) -> tuple[int, int]:
        if rows.ndim != 2 or rows.shape != ages.shape:
            raise ValueError(
                f"rows {rows.shape} and ages {ages.shape} must both be (users, clicks)"
            )
        users, length = rows.shape
        if length > self._window_length:
            raise ValueError(
                f"windows of {length} clicks, but release {self.release.name} reads at most "
                f"{self._window_length}"
            )
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < self.further.end:
            raise ValueError(
                f"rows must be 0..{self.further.end - 1} in release {self.release.name}, got "
                f"{rows.min()}..{rows.max()}"
            )
        return users, length


def _session(release: Release, options: ort.SessionOptions) -> ort.InferenceSession:
    path = release.encoder_path
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class per status, none of them public
        raise ReleaseError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
    inputs = {node.name for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    if not inputs <= set(INPUTS) or not outputs >= set(OUTPUTS):
        raise ReleaseError(
            f"{path} reads {', '.join(sorted(inputs))} and yields {', '.join(sorted(outputs))}; "
            f"this version gives {', '.join(INPUTS)} and needs {', '.join(OUTPUTS)}: serve the "
            "release with the version that trained it"
        )
    return session


def _padded(
    values: npt.NDArray[np.generic], length: int, dtype: type[_Number]
) -> npt.NDArray[_Number]:
    out = np.zeros((len(values), length), dtype)
    out[:, : values.shape[1]] = values
    return out
