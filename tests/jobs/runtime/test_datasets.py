"""The parts of a table through Ray Data: all rows in order, whatever the number of parts, and only what is asked for."""

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import apply_overrides, build_config
from digr.partitions import STARTS, iter_part, parts_of, read_part
from jobs.runtime import datasets


@pytest.fixture
def table(tmp_path):
    """Seven parts of three rows each."""
    for part in range(7):
        rows = {"id": [part * 10 + row for row in range(3)], "split": ["train", "valid", "train"], "text": ["x"] * 3}
        pq.write_table(pa.table(rows), tmp_path / f"part-{part}.parquet")
    return str(tmp_path)


IDS = [part * 10 + row for part in range(7) for row in range(3)]


@pytest.mark.ray
@pytest.mark.parametrize("tasks", [1000, 3, 1])
def test_rows_come_in_the_order_of_the_parts_also_where_parts_share_a_task(table, tasks, ray_local, monkeypatch):
    monkeypatch.setattr(datasets, "READ_TASKS", tasks)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    found = datasets.read_parts(table, ["id"])
    assert found.take_all() == [{"id": number} for number in IDS]
    assert [row["id"] for row in datasets.read_parts(table).limit(5).take_all()] == IDS[:5]


@pytest.mark.ray
def test_only_the_wanted_rows_are_read_and_no_row_still_has_columns(table, ray_local):
    wanted = datasets.read_parts(table, wanted=pc.field("split") == "valid")
    assert sorted(row["id"] for row in wanted.take_all()) == IDS[1::3]
    narrow = datasets.read_parts(table, ["id"], wanted=pc.field("split") == "valid")
    assert sorted(narrow.take_all(), key=str) == sorted(({"id": number} for number in IDS[1::3]), key=str)
    none = datasets.read_parts(table, ["id", "split"], wanted=pc.field("split") == "test")
    assert none.schema().names == ["id", "split"] and none.take_all() == []


def test_a_table_without_parts_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="absent: no Parquet files; run the job that writes them"):
        datasets.read_parts(f"{tmp_path}/absent")


class _Twice:
    """Writes each item's title twice over, one item at a time; part 1 fails at its first attempt on a machine."""

    def __init__(self, config, store, marker):
        self.store, self.marker = store, Path(marker)

    def __call__(self, part):
        for items in iter_part(self.store, "items", part, 1):
            yield "item_embeddings", _vectors(items)
            if part.number == 1 and not self.marker.exists():
                self.marker.touch()
                os._exit(1)


def _vectors(items):
    return pa.table({"item_id": items["item_id"], "embedding": [[float(len(title))] for title in items["title"].to_pylist()]})


def _by_function(part, config, store, length):
    for items in iter_part(store, "items", part, 2):
        if part.number != 1:
            yield "item_embeddings", _vectors(items.filter(pc.equal(pc.utf8_length(items["title"]), length)))


@pytest.fixture
def run(tmp_path):
    """Seven items in parts of three."""
    store, starts = Store(str(tmp_path)), ["", "d", "g"]
    artifacts.write_table(store, "items", pa.table({"item_id": list("abcdefg"), "title": ["x", "xx"] * 3 + ["x"]}), starts)
    artifacts.commit(store, Manifest(name="items", rows=7, facts={STARTS: starts}))
    config = build_config({"run": {"dir": str(tmp_path)}, "cluster": {"encode_workers": 2}}, where="test")
    return config, store, parts_of(store, "item")


@pytest.mark.ray
def test_a_worker_that_dies_in_a_part_writes_it_again_whole(run, tmp_path, ray_local):
    config, store, parts = run
    rows = datasets.map_parts(config, store, _Twice, parts, ["item_embeddings"], arguments=(str(tmp_path / "died"),))
    assert rows == {"item_embeddings": 7} and (tmp_path / "died").exists()
    for part in parts:
        assert read_part(store, "item_embeddings", part)["item_id"].equals(read_part(store, "items", part)["item_id"])


@pytest.mark.ray
def test_a_part_without_rows_is_written_too(run, ray_local):
    config, store, parts = run
    assert datasets.map_parts(config, store, _by_function, parts, ["item_embeddings"], arguments=(2,)) == {"item_embeddings": 1}
    assert [len(read_part(store, "item_embeddings", part)) for part in parts] == [1, 0, 0]


class _Counted:
    """Notes in a folder that it was made."""

    def __init__(self, config, store, folder):
        self.store = store
        Path(folder, uuid.uuid4().hex).touch()

    def __call__(self, part):
        yield "item_embeddings", _vectors(read_part(self.store, "items", part))


@pytest.mark.ray
def test_a_worker_that_holds_a_model_is_made_once_for_all_parts_of_a_stage_and_anew_for_the_next_stage(run, tmp_path, ray_local):
    """Each stage started processes of its own, which for ten seconds did nothing but import."""
    config, store, parts = run
    config = apply_overrides(config, {"cluster.encode_workers": 1})
    for stage in ("first", "second"):
        (tmp_path / stage).mkdir()
        rows = datasets.map_parts(config, store, _Counted, parts, ["item_embeddings"], arguments=(str(tmp_path / stage),))
        assert rows == {"item_embeddings": 7} and len(list((tmp_path / stage).iterdir())) == 1
