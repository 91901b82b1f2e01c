"""The ledger's answers reach the parts of their owners, and every owner gets a row of `interests`, answered or not."""

import json

import numpy as np
import pyarrow as pa
import pytest
import ray

from digr import artifacts, partitions
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.interests import ledger
from digr.interests.prompts import item_requests
from jobs.asking import ledger_tasks, phrase_tasks

pytestmark = pytest.mark.ray

NUM_ITEMS = 40
IDS = [f"{number:02d}" for number in range(NUM_ITEMS)]


def _answer(item: str) -> str:
    return json.dumps({"interests": [{"interest": f"need {int(item) % 7}", "confidence": 0.8}]})


def _fill_ledger(store: Store) -> tuple[str, np.ndarray]:
    """Both miners were asked of all items but those of the second part; the second miner failed, or answered on a retry."""
    uri, items = ledger.open_ledger(store), artifacts.read_table(store, "items")
    asked = items.filter(pa.array([not 10 <= int(item) < 20 for item in IDS]))
    wanted = []
    for miner in ("x", "y"):
        requests = item_requests(asked, miner, "text", 100)
        wanted.append(ledger.digest_numbers(requests["request_digest"]))
        order = np.random.default_rng(0).permutation(len(requests))  # answers come in no order
        for chosen in np.array_split(order, 5):
            batch = requests.take(pa.array(chosen))
            answers = [_answer(item) for item in batch["owner_id"].to_pylist()]
            columns = {"response": answers}
            if miner == "y":
                columns = {"response": [None] * len(batch), "status": ["error"] * len(batch)}
            ledger.append(uri, ledger.finish_responses(ledger.raw_responses(batch, miner, "v1", "text", **columns)))
    again = item_requests(asked.slice(0, 1), "y", "text", 100)
    ledger.append(uri, ledger.finish_responses(ledger.raw_responses(again, "y", "v1", "text", response=[_answer("00")])))
    stranger = item_requests(asked.slice(0, 1), "of an earlier config", "text", 100)
    ledger.append(uri, ledger.finish_responses(ledger.raw_responses(stranger, "z", "v1", "text", response=[_answer("03")])))
    return uri, np.unique(np.concatenate(wanted))


@pytest.mark.parametrize("ids_per_part", [100, 10])
def test_every_owner_has_its_row_and_a_miner_that_failed_halves_the_consensus(tmp_path, ray_local, monkeypatch, ids_per_part):
    monkeypatch.setattr(ledger_tasks, "_BLOCK_ANSWERS", 20)
    store, starts = Store(str(tmp_path)), partitions.range_starts(pa.array(IDS), ids_per_part)
    artifacts.write_table(store, "items", pa.table({"item_id": IDS, "title": IDS}), starts)
    artifacts.commit(store, Manifest(name="items", rows=NUM_ITEMS, facts={partitions.STARTS: starts}))
    uri, numbers = _fill_ledger(store)
    miners = [{"kind": "extractive", "name": name} for name in ("x", "y")]
    config = build_config({"run": {"dir": store.root}, "interests": {"miners": miners}}, where="test")
    folder = f"{tmp_path}/work"
    outcomes = ledger_tasks.answers_by_part(uri, ray.put(numbers), "item", starts, folder, num_requests=len(numbers))
    assert sorted((row["miner"], row["status"], row["rows"]) for row in outcomes.to_pylist()) == [
        ("x", "ok", 30),
        ("y", "error", 29),
        ("y", "ok", 1),
    ]
    phrase_tasks.merge(config, store, "item", folder)
    assert len(artifacts.list_parts(f"{store.uri('interests')}/item")) == len(starts)
    rows = artifacts.open_parts(store.uri("interests")).to_table().to_pylist()
    assert [row["owner_id"] for row in rows] == IDS
    assert [len(row["interests"]) for row in rows] == [0 if 10 <= int(item) < 20 else 1 for item in IDS]
    found = {row["owner_id"]: row["interests"][0] for row in rows if row["interests"]}
    assert {name: one["interest"] for name, one in found.items()} == {name: f"need {int(name) % 7}" for name in found}
    assert found.pop("00")["consensus"] == 1.0
    assert {one["consensus"] for one in found.values()} == {0.5}
