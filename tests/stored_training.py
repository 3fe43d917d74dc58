"""A training that prints its peak of memory: `python -m tests.stored_training FILES STORE BUFFER`.

It reads, tries fades, trains and measures as for a release, a few steps of a narrow model.
"""

import sys
from pathlib import Path

from training.click_store import read_clicks
from training.preset import TrainingConfig
from training.recency import trained_model
from training.trainer import measure, to_learn_from

CONFIG = TrainingConfig(
    window_length=10,
    width=8,
    interests=2,
    examples=40_000,
    batch_size=512,
    negatives=64,
    threads=1,
)


def peak_bytes() -> int:
    """The most memory that this process has had.

    Not `getrusage`: its maximum has that of the process which started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(files: Path, store: Path, buffer_clicks: int) -> None:
    """Read, try fades, train and measure, as for a release."""
    clicks = read_clicks(files, folder=store, buffer_clicks=buffer_clicks)
    lesson = to_learn_from(clicks, CONFIG)
    model, config = trained_model(lesson.sequences, len(lesson.item_ids), CONFIG)
    peak = peak_bytes()  # the measuring takes a gigabyte, whatever the log: it would hide the rest
    metrics = measure(model, lesson.sequences, lesson.held_out, config)
    print(peak, lesson.clicks, metrics["recall_at_20"])  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
