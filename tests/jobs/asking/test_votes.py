"""Verdicts outlive a kill, lie in the parts of their interests, and those that are missing are asked for again."""

import json

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts, partitions
from digr.artifacts import Manifest, Store
from digr.partitions import Part
from digr.rewards.judge import JUDGED
from jobs.asking.votes import _count, keep_verdicts, read_votes
from jobs.runtime.datasets import part_dataset
from tests.nested_interests import nest_rows

pytestmark = pytest.mark.ray

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


def test_a_verdict_is_kept_and_what_has_none_is_counted_by_status_and_asked_for_again(store, tmp_path, ray_local):
    from jobs.asking.judge import _prompts

    work, parts = str(tmp_path / "work"), [Part("item", 0), Part("item", 1)]

    def asked():
        given = {"store": store, "work": work, "as_json": False, "items": None}
        made = part_dataset(parts).map_batches(_prompts, batch_size=None, batch_format="pyarrow", fn_kwargs=given)
        return sorted(made.take_all(), key=lambda row: row["owner_id"])

    assert [(row["part"], row["owner_id"], row["rank"]) for row in asked()] == [(0, "a", 0), (0, "b", 0), (1, "c", 0)]
    reasons = [None, "error: APITimeoutError: late", "unparsable: neither yes nor no"]
    key = {"owner": ["item"] * 3, "part": [0, 0, 1], "owner_id": ["a", "b", "c"], "rank": [0, 0, 0]}
    answers = pa.table(key | {"probability": [0.25, None, None], "reason": reasons}, schema=JUDGED)
    counted = keep_verdicts(answers, work).to_pylist()
    assert counted == [{"status": status, "rows": 1} for status in ("ok", "error", "unparsable")]
    (tmp_path / "work" / "judge" / "item" / "0" / ".draft-of-a-killed-job").write_text("half")
    np.testing.assert_array_equal(read_votes("judge", store, parts[0], work), [0.25, np.nan])
    np.testing.assert_array_equal(read_votes("judge", store, parts[1], work), [np.nan])
    again = asked()
    assert [row["owner_id"] for row in again] == ["b", "c"]
    assert "reel" in json.loads(again[0]["messages"])[1]["content"]
    assert len(keep_verdicts(answers.slice(0, 0), work)) == 0


def test_a_behavioural_vote_is_that_of_the_phrase_in_whichever_part_it_stands(store, tmp_path):
    steps = [("a", "b")] * 30 + [("c", "a")] * 3
    rows = [{"user_id": "u", "split": "train", "history": [one], "target": other} for one, other in steps]
    histories = pa.Table.from_pylist([row | {"example_id": str(place)} for place, row in enumerate(rows)])
    artifacts.write_table(store, "histories", histories)
    artifacts.commit(store, Manifest(name="histories", rows=len(rows)))
    phrases = [{"owner_id": item, "interest": phrase} for item, phrase in (("a", "x"), ("b", "x"), ("c", "x"), ("c", "new"))]
    artifacts.write_table(store, "interests", nest_rows("interests", phrases, "abc"), ["", "c"])
    _count(store, 1.0, str(tmp_path / "work"), ["item"])
    first, last = (read_votes("behavioural", store, Part("item", part), str(tmp_path / "work")) for part in (0, 1))
    assert first[0] == first[1] == last[0] > 0 and np.isnan(last[1])
