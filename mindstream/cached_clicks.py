"""What the trainer's cache on this machine holds of a user, and its erasure there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from encoder.errors import Misconfigured
from encoder.settings import Settings
from mindstream.one_at_a_time import RunsAlready, only_one
from training.click_cache import ClickCache
from training.click_manifest import LOCK_FILE, PART_NAME
from training.click_parts import times_of


def cache_folder(settings: Settings) -> Path:
    """Where the clicks read so far are."""
    return Path(settings.trainer.click_cache or Path(settings.releases.cache) / "clicks")


def training_lock(settings: Settings, rank: int) -> Path:
    """What a process of a training holds while it reads and trains."""
    return Path(settings.releases.cache) / f"trainer_{rank}.lock"


@dataclass(frozen=True, slots=True)
class CachedClicks:
    """What the files of the cache hold of a user, also those that it no longer needs.

    Attributes:
        folder: of the cache.
        there: whether there is a cache on this machine.
        times_ms: of the user's clicks.
        unread: files that cannot be read, and may hold some, too.
    """

    folder: Path
    there: bool = False
    times_ms: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()


def find_cached(settings: Settings, user_id: str) -> CachedClicks:
    """Look for a user's clicks in the cache; changes nothing.

    Raises:
        Misconfigured: the folder may not be read.
        RunsAlready: a training is writing to it.
    """
    folder = cache_folder(settings)
    try:
        with _not_written_to(folder):
            paths = sorted(p for p in folder.glob("*.parquet") if PART_NAME.fullmatch(p.name))
            times: list[int] = []
            unread: list[str] = []
            for path in paths:
                try:
                    times += times_of(path, user_id)
                except (OSError, pa.ArrowException, ValueError):
                    unread.append(path.name)
            there = bool(paths) or (folder / LOCK_FILE).exists()
    except OSError as exc:
        raise Misconfigured(f"cannot look into the trainer's cache: {exc}") from exc
    return CachedClicks(folder, there, tuple(times), tuple(unread))


def forget_cached(settings: Settings, user_id: str, up_to_ms: int) -> int | None:
    """Forget a user's clicks in the cache; how many there were, None if there is no cache here.

    Raises:
        Misconfigured: it is damaged, or may not be written to.
        RunsAlready: a training reads it.
    """
    folder = cache_folder(settings)
    try:
        if not (folder / LOCK_FILE).exists():
            return None
        with ExitStack() as stack:
            ranks = Path(settings.releases.cache).glob("trainer_*.lock")
            for lock in sorted({*ranks, training_lock(settings, 0)}):
                stack.enter_context(only_one(lock, f"training with the cache in {folder}"))
            return ClickCache(folder, settings).forget(user_id, up_to_ms)
    except OSError as exc:
        raise Misconfigured(f"cannot change the trainer's cache: {exc}") from exc


@contextmanager
def _not_written_to(folder: Path) -> Iterator[None]:
    try:
        file = (folder / LOCK_FILE).open("r")
    except FileNotFoundError:  # nobody has ever written to it
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RunsAlready(
                f"a training is writing to its cache in {folder}; look again when it has done so"
            ) from exc
        yield
