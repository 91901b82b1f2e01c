"""The parts of a table through Ray Data: all rows in order, whatever the number of parts, and only what is asked for."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

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
