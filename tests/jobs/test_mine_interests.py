"""Mining through Ray: every owner gets an answer, and a second run asks only for what changed."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.tables import flat_interests
from jobs import mine_interests
from jobs.runtime.session import Options
from tests.models.endpoint_server import serve_endpoint
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
    first = {row["owner_id"]: row["interests"][0] for row in interests if row["interests"]}
    assert [row["owner_id"] for row in interests] == list(ITEMS) and interests[-1]["interests"] == []
    assert set(first) == {"a", "b", "c", "d"}
    assert (first["a"]["interest"], first["a"]["miners"], first["a"]["consensus"]) == (
        "weekend trout fishing",
        ["extractive", "llm"],
        1.0,
    )
    # the other miner found nothing in b, but was asked
    assert first["b"]["interest"] == "keeping warm" and first["b"]["consensus"] == 0.5
    facts = summary["facts"]["interests"]
    assert (facts["num_owners"], facts["num_owners_with_interests"], list(facts["miners"])) == (5, 4, ["llm", "extractive"])
    worth = facts["miners"]["llm"]
    assert (worth["requests"], worth["ok"], worth["failed"]) == (5, 2, 3)
    # of "weekend trout fishing", "gift giving" and "keeping warm" the other miner found the first too
    assert (worth["interests"], worth["interests_per_request"], worth["agreement_rate"]) == (3, 0.6, 0.3333)
    manifest = artifacts.require(store, "interests")
    assert manifest.rejected == {"owner without interests": 1}

    before = _parts(config)
    assert mine_interests.run(config, Options())["status"] == "skipped"
    _write_items(store, ITEMS | {"b": "Wool hat, now with ear flaps."})
    assert mine_interests.run(config, Options(force="stale"))["status"] == "built"
    new = [part for part in _parts(config) if part not in before]
    asked = pa.concat_tables([pq.read_table(part) for part in new]).to_pylist()
    assert {(row["owner_id"], row["miner"]) for row in asked} == {("b", "llm"), ("b", "extractive")}
    assert "interests: llm: 5 item requests, 4 answered, 1 to ask" in capsys.readouterr().out
    after = artifacts.read_table(store, "interests").to_pylist()
    assert [row for row in after if row["owner_id"] == "a"] == [row for row in interests if row["owner_id"] == "a"]


def test_a_killed_run_keeps_its_finished_batches_and_failures_are_retried_on_demand(config, ray_local, tmp_path):
    miners = (config.interests.miners[0], config.interests.miners[0].model_copy(update={"name": "other"}))
    config = config.model_copy(update={"interests": config.interests.model_copy(update={"miners": miners})})
    mine_interests.run(config, Options())
    store = Store(config.run.dir)
    expected = artifacts.read_table(store, "interests").to_pylist()
    # what a kill leaves: one whole part, a draft, and no manifest
    folder = tmp_path / "run" / "interest_responses"
    (folder / "_manifest.json").unlink()
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


def test_users_are_asked_about_titles_before_their_last_training_target_with_the_mined_interests(config, ray_local):
    from jobs.asking.miners import item_lines_of, requests_of

    changes = {"owners": ("user", "item"), "miners": config.interests.miners[:1]}
    config = config.model_copy(update={"interests": config.interests.model_copy(update=changes)})
    mine_interests.run(config, Options())
    store = Store(config.run.dir)
    rows = requests_of(config, store, "user", config.interests.miners[0], item_lines_of(config, store)).take_all()
    lines = [f"{ITEMS['a']} (weekend trout fishing, gift giving)", f"{ITEMS['b']} (keeping warm)"]
    assert [(row["owner_id"], row["text"].splitlines()) for row in rows] == [("u1", lines)]
    interests = artifacts.read_table(Store(config.run.dir), "interests")
    keys = list(zip(interests["owner"].to_pylist(), interests["owner_id"].to_pylist(), strict=True))
    assert keys == [*(("item", item) for item in ITEMS), ("user", "u1")]
    assert interests["interests"][-1].as_py() == []
    statuses = artifacts.require(Store(config.run.dir), "interest_responses").facts["statuses"]
    assert sum(statuses.values()) == 6


WORDS = {"a": "fine", "b": "busy", "c": "broken", "d": "garbage", "e": "half", "f": "meet"}


@pytest.fixture
def endpoints(tmp_path, monkeypatch):
    """Six items, the last two with an image and a broken one, and two miners at one endpoint; gives config and server."""
    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    store = Store(str(tmp_path / "run"))
    Image.new("RGB", (20, 20)).save(tmp_path / "e.png")
    images = [None, None, None, None, str(tmp_path / "e.png"), str(tmp_path / "absent.png")]
    _commit(store, "items", pa.table({"item_id": list(WORDS), "title": list(WORDS.values()), "image_uri": images}))
    with serve_endpoint() as server:
        common = {"kind": "openai", "base_url": server.url, "api_key_env": "DIGR_TEST_KEY", "max_retries": 1, "max_tokens": 50}
        text = common | {"name": "text", "model": "x", "usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 10.0}
        both = common | {"name": "both", "model": "y", "modality": "both"}
        tree = {"run": {"dir": store.root}, "interests": {"miners": [text, both]}, "images": {"folders": [str(tmp_path)]}}
        yield build_config(tree, where="test"), server


def test_a_miner_that_finds_no_interest_stops_the_job_and_shows_three_answers(endpoints, ray_local):
    # a small model copied the dots of the prompt's form: the stage ended as built, with 0 interests of 30 owners
    config, server = endpoints
    _write_items(Store(config.run.dir), {item: f"dots {item}" for item in "abcdef"})
    with pytest.raises(ValueError, match="0 of 6 owners got an interest; 0 of 6 answers of miner text list an interest") as error:
        mine_interests.run(config, Options())
    assert str(error.value).count("the answer lists no interest)") == 6 and "min_yield_rate = 0.05" in str(error.value)
    asked = len(server.bodies)
    relaxed = _interests(config, min_yield_rate=0.0)
    summary = mine_interests.run(relaxed, Options())
    assert summary["facts"]["interests"]["num_owners_with_interests"] == 0 and len(server.bodies) == asked == 12


def test_too_many_failures_stop_the_job_and_the_next_run_asks_them_again(endpoints, ray_local):
    # a share of any size was built, and its rows were never asked again without --force and retry_failed
    config, _server = endpoints
    titles = dict.fromkeys("bcdef", "broken") | {"a": "fine"}
    _write_items(Store(config.run.dir), dict(sorted(titles.items())))
    with pytest.raises(
        ValueError, match=r": [45] of 6 requests failed, more than .*max_failed_rate = 0\.5(.|\n)*InternalServerError"
    ):
        mine_interests.run(config, Options())
    assert artifacts.read_manifest(Store(config.run.dir), "interests") is None
    before = [row for row in _rows(config) if row["status"] == "ok"]
    summary = mine_interests.run(_interests(config, max_failed_rate=0.9), Options())
    assert summary["facts"]["interest_responses"]["statuses"] == {"error": 10, "ok": 2}
    assert [row for row in _rows(config) if row["status"] == "ok"][: len(before)] == before


def test_keys_of_all_endpoints_are_checked_before_anything_starts(endpoints, ray_local, monkeypatch):
    # the judge's key was missed after days of mining, an endpoint's after the engines
    config, server = endpoints
    judge = {"kind": "openai", "base_url": server.url, "model": "m", "api_key_env": "NO_SUCH_KEY"}
    judged = build_config(config.model_dump() | {"labels": {"labelers": ["judge"], "judge": judge}}, where="test")
    with pytest.raises(ValueError, match=r"labels\.judge: environment variable NO_SUCH_KEY is empty"):
        mine_interests.run(judged, Options())
    monkeypatch.delenv("DIGR_TEST_KEY")
    with pytest.raises(ValueError, match=r"interests\.miners\.text: environment variable DIGR_TEST_KEY is empty"):
        mine_interests.run(config, Options())
    assert not server.bodies and not _parts(config)


def _interests(config, **changes):
    return config.model_copy(update={"interests": config.interests.model_copy(update=changes)})


def test_a_budget_stops_the_asking_and_a_larger_one_asks_the_rest_of_all_endpoints_at_once(endpoints, ray_local, capsys):
    config, server = endpoints
    capped = config.model_copy(update={"interests": config.interests.model_copy(update={"max_tokens_total": 1600})})
    with pytest.raises(ValueError, match=r"stopped at the budget: \d+ tokens and .* 9 requests are still to ask"):
        mine_interests.run(capped, Options())
    store = Store(config.run.dir)
    assert artifacts.read_manifest(store, "interests") is None and len(_rows(config)) == 3
    first = len(server.bodies)

    mine_interests.run(config, Options())
    # each of the twelve once, once more for both busy prompts and both broken ones, and twice for the one that had failed
    assert first == 5 and len(server.bodies) == 12 + 4 + 2
    rows = {(row["miner"], row["owner_id"]): row for row in _rows(config)}
    expected = {"a": "ok", "b": "ok", "c": "error", "d": "error", "e": "truncated", "f": "ok"}
    assert {key: row["status"] for key, row in rows.items()} == {
        (miner, item): status for miner in ("text", "both") for item, status in expected.items()
    }
    assert rows["text", "a"]["cost_usd"] == pytest.approx((100 * 1.0 + 10 * 10.0) / 1e6)
    # "f" of both miners is ok only because both were asked at the same time
    assert [rows["both", item]["modality"] for item in "def"] == ["text", "both", "text"]
    seen = [part["type"] for body in server.bodies if body["model"] == "y" for part in body["messages"][1]["content"]]
    assert seen.count("image_url") == 1
    assert artifacts.require(store, "interest_responses").rejected["broken image, asked without it"] == 1
    worth = artifacts.require(store, "interests").facts["miners"]
    assert (worth["text"]["cost_usd"], worth["both"]["broken_images"]) == (pytest.approx(4 * 2e-4), 1)
    assert set(flat_interests(artifacts.read_table(store, "interests"))["owner_id"].to_pylist()) == {"a", "b", "f"}
    said = [line for line in capsys.readouterr().out.splitlines() if "interests: text: " in line and "items/s" in line]
    assert "tokens/s" in said[-1] and "USD" in said[-1]


def _rows(config):
    return pa.concat_tables([pq.read_table(part) for part in _parts(config)]).to_pylist()


def test_the_recorded_interests_of_a_real_catalogue_come_back_whole_and_are_not_asked_for_again(tmp_path, ray_local, capsys):
    source = pq.read_table(f"{real_folder('amazon18_industrial_minionerec')}/items.parquet", columns=["item_id", "title"])
    store = Store(str(tmp_path))
    _commit(store, "items", source.sort_by("item_id"))
    miner = {"kind": "replay", "name": "recorded-llm", "path": "configs/industrial_interests/responses.parquet"}
    config = build_config({"run": {"dir": store.root}, "interests": {"miners": [miner]}}, where="test")
    summary = mine_interests.run(config, Options())
    assert summary["rows"] == {"interests": 3686, "interest_responses": 3686}
    assert summary["facts"]["interests"]["num_interests"] == 13654
    assert summary["facts"]["interest_responses"]["statuses"] == {"ok": 3686}
    before, interests = _parts(config), artifacts.read_table(store, "interests")
    assert mine_interests.run(config, Options(force="all"))["status"] == "built"
    assert "recorded-llm: 3686 item requests, 3686 answered, 0 to ask" in capsys.readouterr().out
    assert _parts(config) == before and artifacts.read_table(store, "interests").equals(interests)
