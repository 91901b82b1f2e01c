"""A recording may have several files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digr.interests.replay import open_recording, replay

ROW = {"owner": "item", "miner": "llm", "prompt_version": "v", "modality": "text", "response": "fly fishing", "status": "ok"}


def _write(folder, name, owner_id, **changes):
    columns = {key: [value] for key, value in (ROW | {"owner_id": owner_id} | changes).items()}
    pq.write_table(pa.table(columns), folder / name)


@pytest.mark.parametrize("files", ["ab", "ba"])
def test_a_column_that_is_empty_in_one_file_has_the_type_of_the_other(tmp_path, files):
    """The first file set the type; its empty column had the type null, so the texts of the others could not be read."""
    _write(tmp_path, f"{files[0]}.parquet", "i1", response=None, status="error", reason=None)
    _write(tmp_path, f"{files[1]}.parquet", "i2", reason="slow")
    requests = pa.table({"owner": ["item"] * 2, "owner_id": ["i1", "i2"], "request_digest": ["x", "y"]})
    table = replay(requests, str(tmp_path), "mine")
    assert table["response"].to_pylist() == [None, "fly fishing"] and table["reason"].to_pylist() == [None, "slow"]
    assert table["status"].to_pylist()[0] == "error"


def test_files_whose_types_contradict_are_named(tmp_path):
    _write(tmp_path, "a.parquet", "i1")
    _write(tmp_path, "b.parquet", 7)
    with pytest.raises(ValueError, match=r"its 2 Parquet files have different columns: .*owner_id.*string vs int64"):
        open_recording(str(tmp_path))


def test_of_the_retries_in_a_ledger_the_last_good_answer_counts(tmp_path):
    _write(tmp_path, "a.parquet", "i1", response=None, status="error", reason="503")
    _write(tmp_path, "b.parquet", "i1", response="fly fishing")
    _write(tmp_path, "c.parquet", "i1", response="sea fishing")
    _write(tmp_path, "d.parquet", "i1", response=None, status="error", reason="time-out")
    _write(tmp_path, "e.parquet", "i2", response=None, status="error", reason="503")
    _write(tmp_path, "f.parquet", "i2", response=None, status="refused", reason="no")
    requests = pa.table({"owner": ["item"] * 2, "owner_id": ["i1", "i2"], "request_digest": ["x", "y"]})
    table = replay(requests, str(tmp_path), "mine")
    assert table["response"].to_pylist() == ["sea fishing", None]
    assert table["reason"].to_pylist()[1] == "no"


def test_two_recorded_miners_of_one_owner_are_told_apart_by_name(tmp_path):
    _write(tmp_path, "a.parquet", "i1")
    _write(tmp_path, "b.parquet", "i1", miner="other", response="ice fishing")
    requests = pa.table({"owner": ["item"], "owner_id": ["i1"], "request_digest": ["x"]})
    with pytest.raises(ValueError, match=r"item 'i1' has several rows \(miners 'llm', 'other'\); choose one with recorded_miner"):
        replay(requests, str(tmp_path), "mine")
    assert replay(requests, str(tmp_path), "mine", "other")["response"].to_pylist() == ["ice fishing"]
