"""The state that replicas share: created files are never replaced and are durable, on a disk and on S3."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from digr.s3 import s3_client
from digr.serving.state import MAX_FILE_BYTES, LocalState, S3State, open_state, state_address
from tests.buckets import serve_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Serve one bucket on loopback, to a client of its own."""
    with serve_bucket("state") as address:
        yield address


@pytest.fixture(params=["disk", "s3"])
def state(request, tmp_path):
    """Return an empty state."""
    if request.param == "disk":
        return open_state(str(tmp_path / "state"))
    return open_state(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_a_file_is_created_once_and_its_first_content_stays(state):
    assert state.read("items/1.json") is None
    assert state.create("items/1.json", b"first")
    assert not state.create("items/1.json", b"second")
    assert state.read("items/1.json") == b"first"
    assert state.read_many(["items/1.json", "items/2.json"]) == [b"first", None]


def test_of_many_who_create_a_file_at_once_one_does(state):
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda writer: state.create("j/1", b"%d" % writer), range(8)))
    assert sum(created) == 1
    assert state.read("j/1") == b"%d" % created.index(True)


def test_files_are_listed_replaced_and_removed(state):
    assert state.list_files("metrics") == []
    state.write("metrics/b.prom", b"1")
    state.write("metrics/a.prom", b"1")
    state.write("metrics/a.prom", b"2")
    state.write("metrics/below/c.prom", b"3")
    assert [file.name for file in state.list_files("metrics")] == ["metrics/a.prom", "metrics/b.prom"]
    assert all(-5 < file.age_seconds < 60 for file in state.list_files("metrics"))
    assert state.read("metrics/a.prom") == b"2"
    state.remove("metrics/a.prom")
    state.remove("metrics/a.prom")
    assert [file.name for file in state.list_files("metrics")] == ["metrics/b.prom"]


def test_of_a_file_too_large_no_more_is_read_than_shows_it(tmp_path):
    (tmp_path / "large").write_bytes(bytes(MAX_FILE_BYTES + 1000))
    content = LocalState(tmp_path).read("large")
    assert content is not None and len(content) == MAX_FILE_BYTES + 1


def test_a_folder_in_the_place_of_a_file_is_told_and_other_files_are_read(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").write_bytes(b"x")
    first, second = LocalState(tmp_path).read_many(["1", "2"])
    assert isinstance(first, IsADirectoryError)
    assert second == b"x"


def test_a_created_file_and_the_folders_that_name_it_are_on_the_disk_before_create_returns(tmp_path, monkeypatch):
    """A file survives the machine if its bytes are synced before it has its name, and its name before anyone is told."""
    log, sync, link = [], os.fsync, os.link

    def watched_sync(handle: int) -> None:
        log.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink()), os.fstat(handle).st_ino))
        sync(handle)

    def watched_link(source: Path, target: Path) -> None:
        log.append(("link", str(target), Path(source).stat().st_ino))
        link(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "link", watched_link)
    assert LocalState(tmp_path / "state").create("items/1", b"x")
    inode = (tmp_path / "state" / "items" / "1").stat().st_ino
    linked = log.index(("link", str(tmp_path / "state" / "items" / "1"), inode))
    assert [number for kind, _, number in log[:linked] if kind == "sync"][-1] == inode
    assert {path for kind, path, _ in log[:linked] if kind == "sync"} >= {str(tmp_path), str(tmp_path / "state")}
    assert [path for kind, path, _ in log[linked:] if kind == "sync"] == [str(tmp_path / "state" / "items")]
    assert list((tmp_path / "state" / "items").glob(".*")) == []


def test_a_process_has_one_client_of_s3(bucket):
    clients = set()
    threads = [threading.Thread(target=lambda: clients.add(id(s3_client(4)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 1


def test_a_bucket_that_is_not_there_is_an_error_of_the_system(bucket):
    state = S3State("nowhere", "")
    for ask, given in ((state.read, ()), (state.create, (b"",)), (state.list_files, ()), (state.write, (b"",))):
        with pytest.raises(OSError, match=r"s3://nowhere/a: .*NoSuchBucket"):
            ask("a", *given)


def test_an_address_is_a_folder_or_a_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert state_address("here") == f"{tmp_path}/here"
    assert state_address("file:///a%20b") == "/a b"
    assert state_address("s3://bucket/a/") == "s3://bucket/a"
    assert open_state("s3://bucket/a/b") == S3State("bucket", "a/b/")
    assert open_state("s3://bucket") == S3State("bucket", "")
