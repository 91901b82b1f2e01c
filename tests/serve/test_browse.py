"""Items, searches, the tree of semantic IDs, images, completions and metrics."""

import asyncio
import re
from collections import Counter

import pytest

from digr import artifacts
from serve.replicas.board import MemoryBoard
from serve.settings import AppArguments, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, LEVEL_SIZES, MAX_HISTORY, put, serve_without_ray, write_canonical, write_run


def test_an_item_says_everything_that_is_known(client, tiny_run):
    codes = artifacts.read_table(tiny_run, "item_sids", item_id=["item04"])["codes"][0].as_py()
    assert client.get("/v1/items/item04").json() == {
        "item_id": "item04",
        "title": "Title item04",
        "description": "About item04",
        "brand": None,
        "categories": ["all", "c0"],
        "price": 4.0,
        "currency": "EUR",
        "available": True,
        "image": None,
        "sid": codes,
        "sid_text": f"<a_{codes[0]}><b_{codes[1]}><c_{codes[2]}>",
        "interests": ["interest 1"],
    }


@pytest.mark.parametrize("path", ["/v1/items/ghost", "/v1/items/ghost/image", "/v1/items/..%2F..%2Fetc%2Fpasswd"])
def test_an_unknown_item_is_a_problem(client, path):
    reply = client.get(path)
    assert (reply.status_code, reply.json()["type"]) == (404, "unknown-item")
    assert "is not in the catalogue; GET /v1/items?query= finds items by title" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("item1", {f"item{i}" for i in range(10, 20)}),
        ("ITEM07 title", {"item07"}),
        ("title item5 item59", {"item59"}),
        ("tem07", set()),
        ("item07!", {"item07"}),
        ("!?", set()),
    ],
)
def test_a_search_finds_titles_with_words_that_begin_like_the_query(client, query, found):
    items = client.get("/v1/items", params={"query": query, "limit": 20}).json()["items"]
    assert {item["item_id"] for item in items} == found


def test_a_search_lists_popular_items_first(client):
    assert [item["item_id"] for item in client.get("/v1/items?query=title&limit=3").json()["items"]] == [
        "item05",
        "item06",
        "item07",
    ]
    assert [item["item_id"] for item in client.get("/v1/items?limit=2").json()["items"]] == ["item05", "item06"]


@pytest.fixture
def named(tmp_path):
    """Serve a run with canonical interests."""
    store = write_run(str(tmp_path))
    write_canonical(store)
    return serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, state_dir=str(tmp_path / "state")))


def _found(client, query: str, limit: int = 50) -> dict[str, str | None]:
    items = client.get("/v1/items", params={"query": query, "limit": limit}).json()["items"]
    return {item["item_id"]: item["interest"] for item in items}


def test_a_search_finds_the_items_of_the_canonical_interests_that_it_names(named, client):
    hikers = [f"item{index:02d}" for index in range(0, 60, 3)]
    found = _found(named, "Hikes week")
    assert sorted(found) == hikers and set(found.values()) == {"weekend hikes"}
    assert next(iter(found)) == "item06"  # the most popular one
    assert _found(named, "interest 0") == found  # by a phrase that is not the name
    assert len(_found(named, "weekend", 3)) == 3
    assert _found(named, "interest 2") == _found(named, "outdoors") == {}  # of none, and of another grain
    assert set(_found(named, "interest").values()) == {"weekend hikes", "interest 1"}
    new = {"item_id": "boots", "title": "Boots", "interests": ["Weekend hikes"]}
    assert named.post("/v1/items", json=new).status_code == 200
    assert _found(named, "weekend") == found | {"boots": "weekend hikes"}
    assert _found(client, "weekend") == {}  # a run without canonical interests


def test_titles_stand_before_interests_and_no_item_stands_twice(tmp_path):
    store = write_run(str(tmp_path))
    names = ["title hunters", "interest 0"]
    rows = {"interest": names, "num_items": [20, 20], "groups": [[0], [0]], "names": [names[:1]] * 2}
    put(store, "canonical_interests", rows)
    found = _found(serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH)), "title")
    assert len(found) == 50 and set(found.values()) == {None}
    few = _found(serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH)), "hunters")
    assert len(few) == 20 and set(few.values()) == {"title hunters"}


def test_reasons_are_by_canonical_interests_in_the_items_own_words(tmp_path):
    store = write_run(str(tmp_path))
    rows = {"interest": ["interest 0", "interest 1"], "num_items": [20, 20], "groups": [[0], [0]], "names": [["interest 0"]] * 2}
    put(store, "canonical_interests", rows)
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH))
    items = client.post("/v1/recommend", json={"history": ["item00"], "k": 10}).json()["items"]
    shared = {0: ["interest 0"], 1: ["interest 1"], 2: []}
    assert [item["reasons"] for item in items] == [shared[int(item["item_id"][4:]) % 3] for item in items]
    assert {int(item["item_id"][4:]) % 3 for item in items} == {0, 1, 2}


def test_the_tree_leads_to_every_item_and_counts_what_is_below(client, tiny_run):
    table = artifacts.read_table(tiny_run, "item_sids")
    codes = dict(zip(table["item_id"].to_pylist(), table["codes"].to_pylist(), strict=True))
    root = client.get("/v1/sids").json()
    assert (root["level"], root["num_items"]) == (0, 60)
    assert {child["code"]: child["num_items"] for child in root["children"]} == Counter(sid[0] for sid in codes.values())
    found = {}
    stack = [child["prefix"] for child in root["children"]]
    while stack:
        level = client.get("/v1/sids", params={"prefix": stack.pop()}).json()
        for child in level["children"]:
            if child["item_id"]:
                found[child["item_id"]] = [int(code) for code in child["prefix"].split(".")]
            else:
                stack.append(child["prefix"])
    assert found == codes


def test_a_child_of_the_tree_shows_its_commonest_interests_and_popular_items(client, tiny_run):
    table = artifacts.read_table(tiny_run, "item_sids")
    for child in client.get("/v1/sids").json()["children"]:
        below = [
            item
            for item, sid in zip(table["item_id"].to_pylist(), table["codes"].to_pylist(), strict=True)
            if sid[0] == child["code"]
        ]
        counts = Counter(f"interest {int(item[4:]) % 3}" for item in below)
        assert [counts[interest] for interest in child["interests"]] == sorted(counts.values(), reverse=True)
        popular = [item for item in ("item05", "item06", "item07") if item in below]
        assert [item["item_id"] for item in child["samples"]][: len(popular)] == popular


@pytest.mark.parametrize(
    ("prefix", "status"), [("99", 404), ("0.0.0.0", 404), ("a", 422), ("1..2", 422), ("1.2.", 422), ("-1", 422)]
)
def test_a_prefix_that_nothing_begins_with_is_a_problem(client, prefix, status):
    reply = client.get("/v1/sids", params={"prefix": prefix})
    assert reply.status_code == status
    if status == 404:
        assert f"prefix {prefix}: no semantic ID of the catalogue begins with it; start at the root" in reply.json()["detail"]


def test_an_item_without_image_is_a_problem(client):
    reply = client.get("/v1/items/item04/image")
    assert (reply.status_code, reply.json()["type"]) == (404, "no-image")
    assert reply.json()["detail"] == "item 'item04' has no image"


def _sid(client, item: str) -> str:
    return client.get(f"/v1/items/{item}").json()["sid_text"]


def test_a_completion_is_the_list_as_semantic_ids(client):
    prompt = _sid(client, "item01") + _sid(client, "item02")
    reply = client.post(
        "/v1/completions", json={"model": "main", "prompt": prompt, "n": 3, "temperature": 0, "max_tokens": 9}
    ).json()
    items = client.post("/v1/recommend", json={"history": ["item01", "item02"], "k": 3}).json()["items"]
    assert reply["object"] == "text_completion"
    assert [choice["item_id"] for choice in reply["choices"]] == [item["item_id"] for item in items]
    assert [choice["text"] for choice in reply["choices"]] == [_sid(client, item["item_id"]) for item in items]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15}


def test_several_prompts_have_their_choices_one_after_another_and_only_the_newest_items_count(client):
    long = "".join(_sid(client, f"item{index:02d}") for index in range(20))
    short = "".join(_sid(client, f"item{index:02d}") for index in range(20 - MAX_HISTORY, 20))
    reply = client.post("/v1/completions", json={"prompt": [long, short], "n": 2}).json()
    texts = [choice["text"] for choice in reply["choices"]]
    assert texts[:2] == texts[2:]


@pytest.mark.parametrize(
    "prompt", ["hello", "<a_1>", "<a_1><b_1>", "<b_1><a_1><c_1>", "<a_8><b_0><c_0>", "<a_1><b_1><c_1>x", "<a_1><b_1><c_1><c_1>"]
)
def test_a_prompt_that_is_not_made_of_semantic_ids_is_a_problem(client, prompt):
    reply = client.post("/v1/completions", json={"prompt": prompt})
    assert (reply.status_code, reply.json()["type"]) == (422, "invalid-prompt")
    assert re.search(
        r"must be whole semantic IDs, oldest first, such as <a_0><b_\d><c_\d>; level sizes are", reply.json()["detail"]
    )
    assert str(LEVEL_SIZES) in reply.json()["detail"]


def test_the_metrics_of_all_replicas_stand_together(tiny_run):
    """Without a `state_dir`, `/metrics` showed the numbers of whichever replica answered."""
    arguments, board = AppArguments(models={"main": VersionSettings(run_dir=tiny_run.root)}, beam_width=BEAM_WIDTH), MemoryBoard()
    one, two = (serve_without_ray(arguments, name, board=board) for name in ("one", "two"))
    for client, times in ((one, 2), (two, 3)):
        for _ in range(times):
            client.post("/v1/recommend", json={"history": ["item01"]})
    one.get("/v1/items/ghost"), one.get("/nowhere/at/all")
    assert asyncio.run(two.service.report()) == 1 and asyncio.run(one.service.report()) == 2
    text = one.get("/metrics").text
    for line in (
        'digr_requests_total{replica="one",route="/v1/recommend",status="200"} 2.0',
        'digr_requests_total{replica="two",route="/v1/recommend",status="200"} 3.0',
        'digr_requests_total{replica="one",route="/v1/items/{item_id:path}",status="404"} 1.0',
        'digr_requests_total{replica="one",route="other",status="404"} 1.0',
        'digr_lists_total{model="main",replica="two",source="policy"} 3.0',
        'digr_request_seconds_count{replica="one",route="/v1/recommend"} 2.0',
        'digr_pending_requests{replica="one"} 0.0',
    ):
        assert line in text
    types = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(types) == len(set(types))


def test_every_route_of_the_contract_is_documented(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/v1")} == {
        "/v1/recommend",
        "/v1/recommend/batch",
        "/v1/events",
        "/v1/similar",
        "/v1/items",
        "/v1/items/bulk",
        "/v1/items/{item_id}",
        "/v1/items/{item_id}/image",
        "/v1/sids",
        "/v1/models",
        "/v1/completions",
    }
    assert client.get("/docs").status_code == 200
