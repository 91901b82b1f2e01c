"""Verdicts outlive a kill, and those that are missing are asked for again."""

import json

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.rewards.judge import JUDGED
from jobs.asking.votes import keep_verdicts, read_votes

pytestmark = pytest.mark.ray

KEY = {"owner": ["item"] * 3, "owner_id": ["a", "b", "c"], "rank": [0, 0, 0]}


def test_a_verdict_is_kept_and_what_has_none_is_counted_by_status_and_asked_for_again(tmp_path):
    from jobs.asking.judge import _prompts

    store, work = Store(str(tmp_path / "run")), str(tmp_path / "work")
    artifacts.write_table(store, "items", pa.table({"item_id": KEY["owner_id"], "title": ["rod", "reel", "hat"]}))
    artifacts.commit(store, Manifest(name="items", rows=3))
    interests = pa.table(KEY | {"interest": ["fishing", "trout", "sun"]})
    (tmp_path / "work" / "judge").mkdir(parents=True)
    assert len(_prompts(interests, store=store, work=work, as_json=False)) == 3
    reasons = [None, "error: APITimeoutError: late", "unparsable: neither yes nor no"]
    answers = pa.table(KEY | {"probability": [0.25, None, None], "reason": reasons}, schema=JUDGED)
    counted = keep_verdicts(answers, f"{work}/judge").to_pylist()
    assert counted == [{"status": status, "rows": 1} for status in ("ok", "error", "unparsable")]
    (tmp_path / "work" / "judge" / ".draft-of-a-killed-job").write_text("half")
    np.testing.assert_array_equal(read_votes("judge", interests, work), [0.25, np.nan, np.nan])
    again = _prompts(interests, store=store, work=work, as_json=False)
    assert again["owner_id"].to_pylist() == ["b", "c"]
    assert "reel" in json.loads(again["messages"][0].as_py())[1]["content"]
    assert len(keep_verdicts(answers.slice(0, 0), f"{work}/judge")) == 0
