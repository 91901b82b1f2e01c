"""Labelers' votes on an interest are read with the interest's part."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digr import artifacts, partitions
from digr.artifacts import Manifest, Store
from digr.partitions import Part
from jobs.asking.votes import _count, read_votes
from tests.nested_interests import nest_rows

PHRASES = {"a": "fishing", "b": "trout", "c": "sun"}


@pytest.fixture
def store(tmp_path) -> Store:
    """Three items with an interest each, the last in a part of its own."""
    store, starts = Store(str(tmp_path / "run")), ["", "c"]
    items = pa.table({"item_id": list(PHRASES), "title": ["rod", "reel", "hat"]})
    artifacts.write_table(store, "items", items, starts)
    artifacts.commit(store, Manifest(name="items", rows=3, facts={partitions.STARTS: starts}))
    rows = [{"owner_id": item, "interest": phrase} for item, phrase in PHRASES.items()]
    artifacts.write_table(store, "interests", nest_rows("interests", rows, list(PHRASES)), starts)
    artifacts.commit(store, Manifest(name="interests", rows=3))
    return store


def test_a_verdict_is_read_in_the_part_of_its_interest_and_absent_where_there_is_none(store, tmp_path):
    folder = tmp_path / "work" / "judge" / "item"
    folder.mkdir(parents=True)
    key = {"owner": ["item"] * 2, "owner_id": ["a", "b"], "interest": ["fishing", "another"]}
    pq.write_table(pa.table(key | {"probability": [0.25, 0.5]}), folder / "part-00000.parquet")
    np.testing.assert_array_equal(read_votes("judge", store, Part("item", 0), str(tmp_path / "work")), [0.25, np.nan])
    np.testing.assert_array_equal(read_votes("judge", store, Part("item", 1), str(tmp_path / "work")), [np.nan])


def test_a_behavioural_vote_is_that_of_the_phrase_in_whichever_part_it_stands(store, tmp_path):
    steps = [("a", "b")] * 30 + [("c", "a")] * 3
    rows = [{"user_id": f"u{user:02d}", "history": [one], "target": other} for user, (one, other) in enumerate(steps)]
    histories = pa.Table.from_pylist([row | {"example_id": row["user_id"], "split": "train"} for row in rows])
    artifacts.write_table(store, "histories", histories)
    artifacts.commit(store, Manifest(name="histories", rows=len(rows)))
    phrases = [{"owner_id": item, "interest": phrase} for item, phrase in (("a", "x"), ("b", "x"), ("c", "x"), ("c", "new"))]
    artifacts.write_table(store, "interests", nest_rows("interests", phrases, "abc"), ["", "c"])
    _count(store, 1.0, str(tmp_path / "work"), ["item"])
    first, last = (read_votes("behavioural", store, Part("item", part), str(tmp_path / "work")) for part in (0, 1))
    assert first[0] == first[1] == last[0] > 0 and np.isnan(last[1])
