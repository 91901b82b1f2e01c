"""Mining through Ray: every owner gets an answer, and a second run asks only for what changed."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from jobs import mine_interests
from jobs.runtime import Options
from tests.interests.endpoint_server import serve_endpoint
from tests.real_data import real_folder

pytestmark = pytest.mark.ray

ITEMS = {
    "a": "Folding rod. Made for weekend trout fishing on cold rivers.",
    "b": "Wool hat. People who love weekend trout fishing wear it.",
    "c": "Oak board. Handy for sourdough bread baking at home.",
    "d": "Steel scraper. A must for sourdough bread baking.",
    "e": "Plain box.",
}


def _commit(store, name, table):
    artifacts.begin(store, name)
    artifacts.write_table(store, name, table)
    artifacts.commit(store, Manifest(name=name, rows=len(table), facts={"content": artifacts.digest_of(table.to_pylist())}))


def _write_items(store, items=ITEMS):
    _commit(store, "items", pa.table({"item_id": list(items), "title": list(items.values())}))


def _answer(**interests):
    listed = [{"interest": name.replace("_", " "), "confidence": value} for name, value in interests.items()]
    return json.dumps({"reasoning": "", "interests": listed})


def _write_recording(path, answers):
    rows = len(answers)
    columns = {"owner": ["item"] * rows, "owner_id": list(answers), "miner": ["llm"] * rows, "status": ["ok"] * rows}
    columns |= {"prompt_version": ["v1"] * rows, "modality": ["text"] * rows, "response": list(answers.values())}
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def config(tmp_path):
    """Five items, a recording that lacks one and has one cut answer, and users."""
    store = Store(str(tmp_path / "run"))
    _write_items(store)
    histories = [
        ("u1:0", "u1", "train", ["a"], "b"),
        ("u1:1", "u1", "train", ["a", "b"], "c"),
        ("u1:2", "u1", "test", ["a", "b", "c"], "d"),
    ]
    names = ("example_id", "user_id", "split", "history", "target")
    _commit(store, "histories", pa.table(dict(zip(names, map(list, zip(*histories, strict=True)), strict=True))))
    answers = {"a": _answer(weekend_trout_fishing=0.9, gift_giving=0.4), "b": _answer(keeping_warm=0.8), "c": "no json"}
    _write_recording(tmp_path / "recorded.parquet", answers | {"d": _answer(bread_baking=0.7)[:-5] + ', {"inter'})
    miners = [{"kind": "replay", "name": "llm", "path": str(tmp_path / "recorded.parquet")}, {"kind": "extractive"}]
    return build_config({"run": {"dir": store.root}, "interests": {"miners": miners}}, where="test")


def _parts(config):
    return sorted(artifacts.list_parts(f"{config.run.dir}/interest_responses"))


def test_no_owner_disappears_and_a_second_run_asks_only_for_what_changed(config, ray_local, capsys):
    summary = mine_interests.run(config, Options())
    store = Store(config.run.dir)
    responses = artifacts.read_table(store, "interest_responses")
    statuses = {(row["miner"], row["owner_id"]): row["status"] for row in responses.to_pylist()}
    assert {owner: statuses["llm", owner] for owner in ITEMS} == {
        "a": "ok",
        "b": "ok",
        "c": "unparsable",
        "d": "truncated",
        "e": "empty",
    }
    assert len(statuses) == 10 and statuses["extractive", "e"] == "empty"
    interests = artifacts.read_table(store, "interests").to_pylist()
    first = {row["owner_id"]: row for row in interests if row["rank"] == 0}
    assert [row["owner_id"] for row in interests] == sorted(row["owner_id"] for row in interests)
    assert set(first) == {"a", "b", "c", "d"}
    assert (first["a"]["interest"], first["a"]["miners"], first["a"]["consensus"]) == (
        "weekend trout fishing",
        ["extractive", "llm"],
        1.0,
    )
    assert summary["facts"]["interests"] == {"num_owners": 5, "num_owners_with_interests": 4}
    manifest = artifacts.require(store, "interests")
    assert manifest.rejected == {"owner without interests": 1}

    before = _parts(config)
    assert mine_interests.run(config, Options())["status"] == "skipped"
    again = mine_interests.run(config, Options(force="all"))
    assert again["status"] == "built" and _parts(config) == before
    assert artifacts.read_table(store, "interests").to_pylist() == interests
    assert "llm: 5 item requests, 5 answered, 0 to ask" in capsys.readouterr().out

    _write_items(store, ITEMS | {"b": "Wool hat, now with ear flaps."})
    mine_interests.run(config, Options(force="stale"))
    new = [part for part in _parts(config) if part not in before]
    asked = pa.concat_tables([pq.read_table(part) for part in new]).to_pylist()
    assert {(row["owner_id"], row["miner"]) for row in asked} == {("b", "llm"), ("b", "extractive")}
    assert "interests: llm: 5 item requests, 4 answered, 1 to ask" in capsys.readouterr().out


def test_a_killed_run_keeps_its_finished_batches_and_failures_are_retried_on_demand(config, ray_local, tmp_path):
    miners = (config.interests.miners[0], config.interests.miners[0].model_copy(update={"name": "other"}))
    config = config.model_copy(update={"interests": config.interests.model_copy(update={"miners": miners})})
    mine_interests.run(config, Options())
    store = Store(config.run.dir)
    expected = artifacts.read_table(store, "interests").to_pylist()
    # what a kill leaves: one whole part, a draft, and no manifest
    folder = tmp_path / "run" / "interest_responses"
    (folder / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "run" / "interests")
    kept, *lost = _parts(config)
    for part in lost:
        shutil.move(part, f"{folder}/.draft-{len(part)}")
    assert mine_interests.run(config, Options())["status"] == "built"
    assert _parts(config)[0] == kept and not list(folder.glob(".draft-*"))
    assert artifacts.read_table(store, "interests").to_pylist() == expected

    before = _parts(config)
    retrying = config.model_copy(update={"interests": config.interests.model_copy(update={"retry_failed": True})})
    mine_interests.run(retrying, Options(force="all"))
    asked = pa.concat_tables([pq.read_table(part) for part in _parts(config) if part not in before]).to_pylist()
    assert {(row["owner_id"], row["miner"]) for row in asked} == {(item, miner) for item in "cde" for miner in ("llm", "other")}
    assert artifacts.read_table(store, "interests").to_pylist() == expected
    assert mine_interests.run(config, Options())["status"] == "skipped"


def test_users_are_asked_about_their_training_titles_only(config, ray_local):
    from jobs.miners import requests_of

    rows = requests_of(config, Store(config.run.dir), "user", config.interests.miners[1]).take_all()
    assert [(row["owner_id"], row["text"]) for row in rows] == [("u1", "\n".join([ITEMS["a"], ITEMS["b"], ITEMS["c"]]))]


def test_an_endpoint_that_fails_some_requests_loses_no_owner_and_its_tokens_are_priced(tmp_path, ray_local, monkeypatch):
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    store = Store(str(tmp_path))
    _write_items(store, {"a": "fine", "b": "busy", "c": "broken", "d": "garbage", "e": "half"})
    with serve_endpoint() as server:
        miner = {"kind": "openai", "name": "api", "base_url": server.url, "model": "x", "api_key_env": "DIGR_TEST_KEY"}
        miner |= {"max_retries": 1, "usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 10.0}
        config = build_config({"run": {"dir": store.root}, "interests": {"miners": [miner]}}, where="test")
        mine_interests.run(config, Options())
    rows = {row["owner_id"]: row for row in artifacts.read_table(store, "interest_responses").to_pylist()}
    assert {item: row["status"] for item, row in rows.items()} == {
        "a": "ok",
        "b": "ok",
        "c": "error",
        "d": "error",
        "e": "truncated",
    }
    assert rows["a"]["cost_usd"] == pytest.approx((100 * 1.0 + 10 * 10.0) / 1e6) and rows["c"]["input_tokens"] == 0
    assert set(artifacts.read_table(store, "interests")["owner_id"].to_pylist()) == {"a", "b"}


def test_the_recorded_interests_of_a_real_catalogue_come_back_whole(tmp_path, ray_local):
    source = pq.read_table(f"{real_folder('amazon18_industrial_minionerec')}/items.parquet", columns=["item_id", "title"])
    store = Store(str(tmp_path))
    _commit(store, "items", source.sort_by("item_id"))
    miner = {"kind": "replay", "name": "recorded-llm", "path": f"{real_folder('industrial_interests')}/responses.parquet"}
    summary = mine_interests.run(
        build_config({"run": {"dir": store.root}, "interests": {"miners": [miner]}}, where="test"), Options()
    )
    assert summary["rows"] == {"interests": 13654, "interest_responses": 3686}
    assert summary["facts"]["interest_responses"]["statuses"] == {"ok": 3686}
