"""Arrays and texts in mapped files, with entries that are added behind them."""

import numpy as np
import pyarrow as pa
import pytest

from digr.serving import mapped
from digr.serving.mapped import map_array, map_texts, save_array, save_texts


def test_what_is_added_follows_what_is_mapped_and_the_file_stays_as_it_is(tmp_path):
    save_array(tmp_path, "price", np.array([1.5, 2.5]))
    assert map_array(tmp_path, "price", np.array([3.5])).tolist() == [1.5, 2.5, 3.5]
    changed = map_array(tmp_path, "price")
    changed[0] = 9.0
    assert map_array(tmp_path, "price").tolist() == [1.5, 2.5]


@pytest.mark.parametrize("texts", [["a", "", "größe"], []])
def test_added_texts_may_be_far_longer_than_those_of_the_run(tmp_path, texts):
    """Five megabytes of interests of added items found no room, and no replica could start any more."""
    save_texts(tmp_path, "interests", pa.array(texts, pa.string()))
    added = pa.array([f"{number:04d}" + "ä" * 250 for number in range(10_000)])
    found = map_texts(tmp_path, "interests", added)
    assert found.to_pylist() == texts + added.to_pylist()
    assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) * 512 < 100_000  # the room is a hole


def test_too_many_entries_or_bytes_are_named(tmp_path, monkeypatch):
    save_array(tmp_path, "price", np.array([1.5]))
    monkeypatch.setattr(mapped, "ROOM", 2)
    with pytest.raises(ValueError, match="3 entries to add, room for 2; build the run again with the added items"):
        map_array(tmp_path, "price", np.zeros(3))
    monkeypatch.setattr(mapped, "MAX_TEXT_BYTES", 6)
    with pytest.raises(ValueError, match="ids: 7 bytes of text, at most 6 are mapped"):
        save_texts(tmp_path, "ids", pa.array(["abcd", "efg"]))
    save_texts(tmp_path, "ids", pa.array(["abcd"]))
    with pytest.raises(ValueError, match="ids: 7 bytes of text, at most 6 are mapped"):
        map_texts(tmp_path, "ids", pa.array(["efg"]))
    with pytest.raises(ValueError, match="found no array names; remove the folder, and it is built again"):
        map_array(tmp_path, "names")
