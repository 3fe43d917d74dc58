"""What is built into the cache is built once, and whole."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.cache import build_once, cache_root


def test_the_root_follows_the_environment(tmp_path: Path) -> None:
    """``XDG_CACHE_HOME`` decides; without it the cache is in the home folder."""
    assert cache_root({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "mindstream"
    assert cache_root({}) == Path.home() / ".cache" / "mindstream"


def test_it_is_built_once_by_whoever_is_first(tmp_path: Path) -> None:
    """Those who ask meanwhile wait, and get the same folder, complete."""
    builds = []

    def build(folder: Path) -> None:
        builds.append(folder)
        time.sleep(0.1)  # meanwhile the others ask
        (folder / "content").write_text("whole")

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: build_once(tmp_path / "it", build), range(8)))
    assert builds == [tmp_path / "it"]
    assert set(folders) == {tmp_path / "it"}
    assert (tmp_path / "it" / "content").read_text() == "whole"


def test_half_a_build_is_done_again(tmp_path: Path) -> None:
    """What an interrupted build left is deleted before the next one."""

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("interrupted")

    with pytest.raises(OSError, match="interrupted"):
        build_once(tmp_path / "it", fail)
    folder = build_once(tmp_path / "it", lambda folder: (folder / "whole").touch())
    assert (folder / "whole").exists()
    assert not (folder / "half").exists()
