"""Mapped files: made once for a machine, used by all replicas, removed when none needs them; swaps leave nothing behind."""

import asyncio
import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from digr import artifacts
from digr.artifacts import Store
from digr.serving import build
from digr.serving.build import BuildRequest, open_build
from serve.settings import AppArguments, LiveSettings, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, put, start_service, write_canonical, write_run


def _request(store: Store, max_history: int = 5) -> BuildRequest:
    return BuildRequest(store.root, "", max_history)


def _contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes()[:5_000_000] for path in folder.iterdir()}


def test_replicas_that_start_together_make_one_build(tiny_run, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        builds = list(pool.map(lambda _: open_build(_request(tiny_run), tmp_path), range(8)))
    assert len({one.folder for one in builds}) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".building", ".used"]
    before = builds[0].folder.stat().st_mtime_ns
    assert open_build(_request(tiny_run), tmp_path).folder.stat().st_mtime_ns == before


def test_a_large_run_is_built_by_another_process_and_alike(tiny_run, tmp_path, monkeypatch):
    here = open_build(_request(tiny_run), tmp_path / "here").folder
    monkeypatch.setattr(build, "SMALL_ROWS", 0)
    apart = open_build(_request(tiny_run), tmp_path / "apart").folder
    assert _contents(apart) == _contents(here)


@pytest.mark.parametrize("small_rows", [0, 1000])
def test_a_run_that_cannot_be_built_says_why_and_leaves_nothing(tmp_path, monkeypatch, small_rows):
    monkeypatch.setattr(build, "SMALL_ROWS", small_rows)
    store = write_run(str(tmp_path / "run"))
    items = artifacts.read_table(store, "items")
    put(store, "items", items.slice(1))
    with pytest.raises(ValueError, match="items: 'item00' is not among the 59 known ids"):
        open_build(_request(store), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    put(store, "items", items)
    assert open_build(_request(store), tmp_path / "cache").folder.is_dir()


def test_what_a_killed_builder_left_is_removed_by_the_next(tiny_run, tmp_path):
    left = tmp_path / f".{_request(tiny_run).key()}.0123"
    left.mkdir()
    (left / "price.f8.3").write_bytes(b"half")
    assert open_build(_request(tiny_run), tmp_path).folder.is_dir()
    assert not left.exists()


def test_every_input_makes_a_build_of_its_own(tmp_path):
    store = write_run(str(tmp_path))
    keys = [_request(store).key(), _request(store, max_history=4).key()]
    for name in ("items", "item_sids", "interactions", "histories", "interest_labels"):
        artifacts.commit(store, artifacts.require(store, name))  # as a build in the same folder does, even of equal digest
        keys.append(_request(store).key())
    write_canonical(store)
    keys += [_request(store).key(), BuildRequest(store.root, "", 5, 3, 200).key()]
    assert len(set(keys)) == 9
    artifacts.commit(store, artifacts.require(store, "policy_sft"))  # another policy of the run maps the same files
    assert _request(store).key() == keys[-2]


def test_builds_that_nobody_had_open_for_a_week_are_removed(tiny_run, tmp_path):
    used, unused, new = (_request(tiny_run, max_history) for max_history in (3, 4, 2))
    held, gone = open_build(used, tmp_path), open_build(unused, tmp_path).folder
    week_ago = time.time() - 8 * 86_400
    for key in (used.key(), unused.key()):
        os.utime(tmp_path / f"{key}.used", (week_ago, week_ago))
    fresh = open_build(_request(tiny_run, 5), tmp_path).folder
    assert held.folder.is_dir() and not gone.exists()
    assert open_build(new, tmp_path).folder.is_dir() and fresh.is_dir()


def test_swaps_of_versions_leave_neither_files_open_nor_memory(tiny_run):
    service, process = start_service(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1)), psutil.Process()
    found = []
    for number in range(30):
        ranker = "off" if number % 2 else "on"
        asyncio.run(service.configure(LiveSettings(models={"main": VersionSettings(run_dir=tiny_run.root, ranker=ranker)})))
        gc.collect()  # a version that was let go is part of cycles
        found.append((process.num_fds(), len(process.memory_maps(grouped=False)), process.memory_info().rss))
    files, maps, memory = (
        max(after) - max(before)
        for before, after in zip(zip(*found[8:14], strict=True), zip(*found[24:], strict=True), strict=True)
    )
    assert files < 8  # one that each of the swaps between leaves open would make more
    assert maps < 16
    assert memory < 10_000_000
