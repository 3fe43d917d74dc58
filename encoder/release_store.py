"""Where releases are kept: a folder, or any URL that fsspec can open."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from encoder.release import (
    MANIFEST_FILE,
    PARAMETERS_FILE,
    Release,
    ReleaseError,
    ReleaseUnavailableError,
    open_release,
    read_manifest,
)


def fetch_release(url: str, cache_dir: Path, *, to_train: bool = False) -> Release:
    """Open a release that lies at a local path or under any fsspec URL.

    A local one is opened where it lies. A remote one is copied to `cache_dir` once, under its name
    and the hash of its manifest, so that a release published twice under one name is not confused.

    Args:
        url: where it lies.
        cache_dir: where copies are kept.
        to_train: copy what only the trainer needs, too.

    Raises:
        ReleaseUnavailableError: the storage does not answer; try again.
        ReleaseError: what is there is not a valid release.
    """
    filesystem, root = _filesystem(url)
    if isinstance(filesystem, LocalFileSystem):
        return open_release(Path(root))

    def absent(name: str) -> ReleaseError:
        return ReleaseError(f"{url}/{name} does not exist; check the release's URL")

    try:
        with _reaching(f"read {url}/{MANIFEST_FILE}"):
            raw = bytes(filesystem.cat_file(f"{root.rstrip('/')}/{MANIFEST_FILE}"))
    except FileNotFoundError as error:
        raise absent(MANIFEST_FILE) from error
    manifest = read_manifest(raw, f"{url}/{MANIFEST_FILE}")
    needed = [name for name in manifest.files if to_train or name != PARAMETERS_FILE]
    part = "-to-train" if PARAMETERS_FILE in needed else ""
    folder = cache_dir / f"{manifest.release}-{hashlib.sha256(raw).hexdigest()[:16]}{part}"
    if folder.exists():
        try:
            return open_release(folder)
        except ReleaseError:
            shutil.rmtree(folder)  # a cache entry damaged on disk is fetched again
    cache_dir.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache_dir))
    try:
        (draft / MANIFEST_FILE).write_bytes(raw)
        for name in needed:
            try:
                with _reaching(f"read {url}/{name}"):
                    filesystem.get_file(f"{root.rstrip('/')}/{name}", str(draft / name))
            except FileNotFoundError as error:
                raise absent(name) from error
        try:
            open_release(draft)
        except ReleaseUnavailableError:
            raise
        except ReleaseError as error:
            raise ReleaseError(str(error).replace(str(draft), url.rstrip("/"))) from error
        try:
            draft.rename(folder)
        except OSError:
            # Another process fetched the same release meanwhile; use its copy.
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ReleaseUnavailableError(f"cannot copy {url} to {cache_dir}: {error}") from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return open_release(folder)


def store_release(release: Release, url: str) -> None:
    """Copy a release to a local path or any fsspec URL, manifest last: until then it is not there.

    Raises:
        ReleaseUnavailableError: the storage does not take it; try again.
    """
    filesystem, root = _filesystem(url)
    with _reaching(f"write {release.name} to {url}", absent_too=True):
        filesystem.makedirs(root, exist_ok=True)
        for name in (*release.manifest.files, MANIFEST_FILE):
            if name == PARAMETERS_FILE and not (release.folder / name).exists():
                continue  # of a copy that was fetched without it
            filesystem.put_file(str(release.folder / name), f"{root.rstrip('/')}/{name}")


def store_beside(url: str, name: str, text: str) -> None:
    """Put a text beside a stored release; it is no part of the release.

    Raises:
        ReleaseUnavailableError: the storage does not take it; try again.
    """
    filesystem, root = _filesystem(url)
    with _reaching(f"write {name} to {url}", absent_too=True):
        filesystem.pipe_file(f"{root.rstrip('/')}/{name}", text.encode())


def read_beside(url: str, name: str) -> str | None:
    """A text beside a stored release; None where there is none.

    Raises:
        ReleaseUnavailableError: the storage does not answer.
    """
    filesystem, root = _filesystem(url)
    try:
        with _reaching(f"read {name} at {url}"):
            return bytes(filesystem.cat_file(f"{root.rstrip('/')}/{name}")).decode()
    except FileNotFoundError:
        return None


@contextmanager
def _reaching(doing: str, *, absent_too: bool = False) -> Iterator[None]:
    """Translate what goes wrong at the storage; that a file is not there only with `absent_too`.

    Each kind of storage has exceptions of its own. Those of S3 (no credentials, no connection) are
    no `OSError`.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not absent_too:
            raise
        raise ReleaseUnavailableError(f"cannot {doing}: {error!r}") from error


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ReleaseError(f"{url} is not a path or a URL that fsspec can open: {error}") from error
    return filesystem, str(root)
