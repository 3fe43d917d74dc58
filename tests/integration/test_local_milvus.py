"""Local Milvus, the embedded engine and the real server: same life, same data afterwards."""

from pathlib import Path

import pytest
from pymilvus import MilvusClient

from deploy.guarded_process import ServiceError
from deploy.local_milvus import LocalMilvusLite, LocalMilvusServer
from tests.processes import end, eventually, is_running, listening, start_owner

OWNER = """
import sys, time
from pathlib import Path
from deploy import local_milvus
server = getattr(local_milvus, sys.argv[1])(Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""

EMBEDDED = """
import sys, time
from pymilvus import MilvusClient
MilvusClient(sys.argv[1])
print("open", flush=True)
time.sleep(600)
"""

both = pytest.mark.parametrize("kind", [LocalMilvusLite, LocalMilvusServer])
Kind = type[LocalMilvusLite] | type[LocalMilvusServer]


def ids(uri: str) -> list[int]:
    client = MilvusClient(uri=uri)
    client.load_collection("numbers")
    rows = client.query("numbers", filter="id >= 0", consistency_level="Strong")
    client.close()
    return sorted(row["id"] for row in rows)


def insert(uri: str, *numbers: int) -> None:
    client = MilvusClient(uri=uri)
    if not client.has_collection("numbers"):
        client.create_collection("numbers", dimension=2)
    client.insert("numbers", [{"id": number, "vector": [1.0, number]} for number in numbers])
    client.close()


@both
def test_data_survives_a_crash_and_a_stop(tmp_path: Path, kind: Kind) -> None:
    """After SIGKILL and after a clean stop the rows are there, at the same address."""
    with kind(tmp_path / "data") as milvus:
        uri = milvus.uri
        insert(uri, 1)
        milvus.kill()
        assert not milvus.running
        milvus.start()
        assert milvus.uri == uri
        assert ids(uri) == [1]
        insert(uri, 2)
        milvus.stop()
        milvus.start()
        assert ids(uri) == [1, 2]


@both
def test_it_ends_with_its_owner(tmp_path: Path, kind: Kind) -> None:
    """When the owner is killed outright, the server goes."""
    owner, (pid,) = start_owner(OWNER, kind.__name__, str(tmp_path / "data"))
    try:
        assert is_running(int(pid))
    finally:
        end(owner)
    assert eventually(lambda: not is_running(int(pid)))


def test_a_successor_waits_for_what_a_killed_owner_left(tmp_path: Path) -> None:
    """The same folder can be used at once after its owner was killed."""
    owner, _ = start_owner(OWNER, "LocalMilvusLite", str(tmp_path / "data"))
    end(owner)
    with LocalMilvusLite(tmp_path / "data") as milvus:
        assert milvus.running


@both
def test_one_folder_has_one_server(tmp_path: Path, kind: Kind) -> None:
    """A second server on the same folder is refused at once, by name of the folder."""
    with kind(tmp_path / "data"), pytest.raises(ServiceError, match="data is in use by another"):
        kind(tmp_path / "data").start()


def test_lite_listens_on_loopback(milvus_lite: LocalMilvusLite) -> None:
    """Only this machine can connect to Milvus Lite."""
    assert listening(milvus_lite.pid) == {"127.0.0.1"}


def test_a_folder_that_is_open_elsewhere_is_refused(tmp_path: Path) -> None:
    """When another process has the folder open, the error says so and what to do."""
    folder = tmp_path / "milvus.db"
    holder, _ = start_owner(EMBEDDED, str(folder))
    try:
        with pytest.raises(ServiceError, match=r"milvus\.db is open in another process.* share it"):
            LocalMilvusLite(folder).start()
    finally:
        end(holder)


def test_a_lite_folder_is_the_same_embedded_and_served(tmp_path: Path) -> None:
    """What the server wrote can be opened without it."""
    folder = tmp_path / "milvus.db"
    with LocalMilvusLite(folder) as milvus:
        insert(milvus.uri, 1)
    assert ids(str(folder)) == [1]
