"""Things fetched or built once per user and kept between runs."""

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

_COMPLETE = ".complete"


def cache_root(environment: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CACHE_HOME/mindstream``, by default ``~/.cache/mindstream``."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mindstream"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder as ``build`` fills it, built at most once whoever else asks meanwhile.

    Args:
        folder: where it is kept. Its name must change when what belongs in it does.
        build: is given ``folder``, empty, and fills it in place (virtual environments cannot be
            moved). What an interrupted build left behind is deleted first.

    Returns:
        ``folder``, complete.
    """
    if (folder / _COMPLETE).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            (folder / _COMPLETE).touch()
    return folder
