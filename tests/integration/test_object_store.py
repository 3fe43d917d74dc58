"""Releases in an S3-compatible store: a real server, and what goes wrong with one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from s3fs import S3FileSystem

from encoder.interest_index import InterestIndex
from encoder.release import Release, ReleaseError, ReleaseUnavailableError
from encoder.release_store import fetch_release, read_beside, store_beside, store_release
from encoder.release_topic import read_releases
from mindstream.certificate import CERTIFICATE_FILE
from mindstream.training_run import GATE_FILE, run_training
from tests.deployment import Deployment, random_clicks, small_release
from tests.object_store import BUCKET, ObjectStore, demand_credentials, object_store

URL = f"s3://{BUCKET}/mindstream/r_first"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as running:
        yield running


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return small_release(tmp_path, "r_first")


def test_a_release_is_stored_and_fetched(
    store: ObjectStore, release: Release, tmp_path: Path
) -> None:
    """By a worker with an empty cache, bit for bit; texts lie beside it."""
    store_release(release, URL)
    files = {*release.manifest.files, "manifest.json"}
    assert store.held() == {f"mindstream/r_first/{name}" for name in files}
    fetched = fetch_release(URL, tmp_path / "worker")
    assert fetched.folder.parent == tmp_path / "worker"
    assert fetched.manifest == release.manifest
    np.testing.assert_array_equal(fetched.items, release.items)
    for name in fetched.manifest.files:
        assert (fetched.folder / name).read_bytes() == (release.folder / name).read_bytes()
    assert read_beside(URL, GATE_FILE) is None
    store_beside(URL, GATE_FILE, '{"passed": true}')
    assert read_beside(URL, GATE_FILE) == '{"passed": true}'
    assert f"mindstream/r_first/{GATE_FILE}" in store.held()


def test_large_files_are_not_held_in_memory(
    store: ObjectStore, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the manifest is read as a whole; the rest goes to its file piece by piece."""
    store_release(release, URL)
    read: list[str] = []
    whole = S3FileSystem._cat_file

    async def cat_file(self: S3FileSystem, path: str, **options: object) -> bytes:
        read.append(path)
        return bytes(await whole(self, path, **options))

    monkeypatch.setattr(S3FileSystem, "_cat_file", cat_file)
    S3FileSystem.clear_instance_cache()  # one that is kept has its methods bound
    fetch_release(URL, tmp_path / "worker")
    assert [path.rpartition("/")[2] for path in read] == ["manifest.json"]


def test_a_corrupt_object_is_named_by_its_url(
    store: ObjectStore, release: Release, tmp_path: Path
) -> None:
    """Nothing of the release stays in the cache; once it is stored again it is fetched."""
    store_release(release, URL)
    key = "mindstream/r_first/items.npy"
    raw = bytearray((release.folder / "items.npy").read_bytes())
    raw[-1] ^= 1
    store.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(raw))
    with pytest.raises(ReleaseError, match=f"{URL}/items.npy is not the file") as caught:
        fetch_release(URL, tmp_path / "worker")
    assert not isinstance(caught.value, ReleaseUnavailableError)
    assert list((tmp_path / "worker").iterdir()) == []
    store_release(release, URL)
    fetch_release(URL, tmp_path / "worker")


@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx"])
def test_a_missing_object_is_named_by_its_url(
    store: ObjectStore, release: Release, tmp_path: Path, name: str
) -> None:
    """Trying again would not help."""
    store_release(release, URL)
    store.client.delete_object(Bucket=BUCKET, Key=f"mindstream/r_first/{name}")
    with pytest.raises(ReleaseError, match=f"{URL}/{name} does not exist") as caught:
        fetch_release(URL, tmp_path / "worker")
    assert not isinstance(caught.value, ReleaseUnavailableError)


def check_that_nothing_works(release: Release, cache: Path, why: str) -> None:
    with pytest.raises(ReleaseUnavailableError, match=f"cannot read {URL}/manifest.json.*{why}"):
        fetch_release(URL, cache)
    with pytest.raises(ReleaseUnavailableError, match=f"cannot write r_first to {URL}.*{why}"):
        store_release(release, URL)
    with pytest.raises(ReleaseUnavailableError, match=f"{GATE_FILE} at {URL}.*{why}"):
        read_beside(URL, GATE_FILE)
    with pytest.raises(ReleaseUnavailableError, match=f"{GATE_FILE} to {URL}.*{why}"):
        store_beside(URL, GATE_FILE, "{}")


def test_a_store_that_is_down_may_be_tried_again(
    store: ObjectStore, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked of it; the error has the URL."""
    store_release(release, URL)
    monkeypatch.setattr(S3FileSystem, "retries", 1)  # which would take seconds each
    store.server.stop()
    check_that_nothing_works(release, tmp_path / "worker", "Could not connect")
    assert not (tmp_path / "worker").exists()


def test_wrong_credentials_are_told(
    store: ObjectStore, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be given rights or be replaced meanwhile."""
    store_release(release, URL)
    demand_credentials(monkeypatch)
    check_that_nothing_works(release, tmp_path / "worker", "Access Key|Forbidden")


def test_no_credentials_are_told(
    store: ObjectStore, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the error's name; it is none of the system's."""
    store_release(release, URL)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    check_that_nothing_works(release, tmp_path / "worker", "Unable to locate credentials")


def test_a_release_is_trained_and_served_from_the_store(
    store: ObjectStore, deployment: Deployment
) -> None:
    """A run publishes there, a worker fetches, fills and serves it, and readers go over to it."""
    settings = deployment.settings
    deployment.settings = settings.model_copy(
        update={
            "releases": settings.releases.model_copy(
                update={"url": f"s3://{BUCKET}/mindstream", "switch_timeout_s": 60.0}
            ),
            "trainer": settings.trainer.model_copy(update={"examples": 500}),
        }
    )
    deployment.produce(random_clicks(600))
    with deployment.worker():
        deployment.wait_until_consumed()
        deployment.wait_until_filled()
        trained = run_training(deployment.settings, None, None, Console(quiet=True), force=True)
    assert trained is not None
    index = InterestIndex(settings.milvus)
    in_use = index.release_in_use()
    assert in_use is not None
    assert in_use.name == trained.name
    assert index.count("interests", trained.name) > 0
    index.drop_release(trained.name)
    index.close()
    announced = read_releases(settings.kafka).announcement(trained.name)
    assert announced is not None
    assert announced.url == f"s3://{BUCKET}/mindstream/{trained.name}"
    for name in (GATE_FILE, CERTIFICATE_FILE, "manifest.json", "parameters.npz"):
        assert f"mindstream/{trained.name}/{name}" in store.held()
    cached = [one.name for one in Path(settings.releases.cache).iterdir()]
    assert any(name.startswith(f"{trained.name}-") for name in cached)
