"""Items that are changed or taken out while they are served: at once on every replica, after a restart, and in every list."""

import asyncio

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.serving.facts import pack, search_titles
from serve.contract.item_schemas import ItemChange
from serve.contract.schemas import RecommendRequest
from serve.items.catalogue import ITEM_SCHEMA, Changes, assemble, read_run
from serve.lists.checking import check_request
from serve.settings import AppArguments, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, put, serve_without_ray, write_canonical, write_run

LAMP = {
    "item_id": "lamp",
    "title": "A brass lamp",
    "categories": ["lamps"],
    "price": 9.5,
    "currency": "EUR",
    "interests": ["light"],
}


@pytest.fixture
def arguments(tiny_run, tmp_path):
    return AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))


def _replicas(arguments, one):
    """Return the replica that wrote, one that followed and one that started later."""
    two = serve_without_ray(arguments, "two")
    asyncio.run(two.service.follow())
    return one, two, serve_without_ray(arguments, "three")


def _listed(client, **request) -> list[str]:
    reply = client.post("/v1/recommend", json={"k": BEAM_WIDTH} | request)
    assert reply.status_code == 200, reply.text
    return [item["item_id"] for item in reply.json()["items"]]


def _found(client, query: str) -> list[str]:
    return [item["item_id"] for item in client.get("/v1/items", params={"query": query, "limit": 50}).json()["items"]]


@pytest.mark.parametrize("item", ["item05", "lamp"])
def test_changed_facts_are_shown_searched_filtered_and_kept_and_the_semantic_id_stays(arguments, item):
    client, late = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "late")
    client.post("/v1/items", json=LAMP)
    before = client.get(f"/v1/items/{item}").json()
    change = {
        "title": "Copper kettle",
        "price": 77.25,
        "currency": "EUR",
        "categories": ["kettles"],
        "brand": "Ember",
        "description": None,
    }
    changed = client.patch(f"/v1/items/{item}", json=change)
    assert (changed.status_code, changed.json()) == (200, before | change)
    asyncio.run(late.service.follow())
    for replica in (*_replicas(arguments, client), late):
        assert replica.get(f"/v1/items/{item}").json() == before | change
        assert _found(replica, "copper") == [item]
        assert item not in _found(replica, before["title"])
        for allow in ({"categories": ["kettles"]}, {"min_price": 77, "max_price": 78, "currency": "EUR"}):
            reply = replica.post("/v1/recommend", json={"history": ["item20"], "allow": allow}).json()["items"]
            assert [(one["item_id"], one["title"], one["price"]) for one in reply] == [(item, "Copper kettle", 77.25)]


def test_only_given_facts_change_and_the_same_change_again_writes_nothing(arguments, tmp_path):
    client = serve_without_ray(arguments)
    before = client.get("/v1/items/item04").json()
    for _ in range(2):
        assert client.patch("/v1/items/item04", json={"price": 5.5}).json() == before | {"price": 5.5}
    assert client.patch("/v1/items/item04", json={"price": None, "currency": None}).json()["price"] is None
    assert len(list((tmp_path / "items").iterdir())) == 2


@pytest.mark.parametrize("way", ["deleted", "unavailable"])
def test_an_item_that_was_taken_out_is_in_no_list_and_histories_that_contain_it_still_work(arguments, way):
    client = serve_without_ray(arguments, "one")
    history = {"history": ["item01", "item02"]}
    full = _listed(client, **history)
    gone = full[0]
    without = _listed(client, **history, k=BEAM_WIDTH - 1, deny={"item_ids": [gone]})
    popular = _listed(client, user_id="nobody")
    assert popular[0] == "item05"
    with_it = _listed(client, history=[gone], k=3, deny={"item_ids": [gone, "item05"]})
    for item in (gone, "item05"):
        path = f"/v1/items/{item}"
        reply = client.delete(path) if way == "deleted" else client.patch(path, json={"available": False})
        assert reply.status_code == (204 if way == "deleted" else 200)
    for replica in _replicas(arguments, client):
        assert _listed(replica, **history)[:3] == [item for item in without if item != "item05"][:3]
        assert not {gone, "item05"} & set(_listed(replica, **history))
        assert replica.post("/v1/recommend", json=history | {"allow": {"item_ids": [gone]}}).json()["type"] == "no-items-left"
        assert not {gone, "item05"} & set(_listed(replica, **history, deny={"item_ids": ["item09"]}, k=5))
        assert not {gone, "item05"} & set(_listed(replica, **history, exclude_history=True, k=5))
        assert _listed(replica, user_id="nobody", k=5) == [item for item in popular if item not in (gone, "item05")][:5]
        assert _listed(replica, history=[gone], k=3) == with_it
        assert _found(replica, f"Title {gone}") == _found(replica, "Title item05") == []
        assert not {gone, "item05"} & set(_found(replica, ""))
        (version,) = replica.get("/v1/models").json()["data"]
        assert (version["num_items"], version["num_hidden_items"]) == (NUM_ITEMS, 2)
        shown = replica.get(f"/v1/items/{gone}")
        if way == "deleted":
            assert (shown.status_code, shown.json()["type"]) == (404, "unknown-item")
            assert replica.get(f"/v1/items/{gone}/image").json()["type"] == "unknown-item"
        else:
            assert shown.json()["available"] is False


def test_what_was_taken_out_is_in_no_completion_and_no_sample_of_the_tree(arguments):
    client = serve_without_ray(arguments)
    prompt = client.get("/v1/items/item01").json()["sid_text"]

    def complete() -> list[str]:
        return [choice["item_id"] for choice in client.post("/v1/completions", json={"prompt": prompt, "n": 5}).json()["choices"]]

    gone = complete()[0]
    client.delete(f"/v1/items/{gone}")
    assert gone not in complete()

    def samples(prefix: str) -> list[str | None]:
        found = []
        for child in client.get("/v1/sids", params={"prefix": prefix}).json()["children"]:
            found += [child["item_id"], *(item["item_id"] for item in child["samples"]), *samples(child["prefix"])]
        return found

    assert gone not in samples("")
    assert set(samples("")) - {None} == {f"item{at:02d}" for at in range(NUM_ITEMS)} - {gone}


def test_what_was_taken_out_is_not_found_by_its_interests(tmp_path):
    store = write_run(str(tmp_path / "run"))
    write_canonical(store)
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, max_pending=1))
    arguments = client.service.arguments
    before = _found(client, "weekend")
    assert len(before) == 20
    client.delete(f"/v1/items/{before[0]}")
    assert _found(client, "weekend") == before[1:]
    assert arguments.state_dir == f"{store.root}/serving"


def test_an_item_comes_back_with_the_semantic_id_it_had(arguments):
    client = serve_without_ray(arguments, "one")
    sid = client.post("/v1/items", json=LAMP).json()["sids"]
    known = client.get("/v1/items/item04").json()
    for item in ("lamp", "item04"):
        assert [client.delete(f"/v1/items/{item}").status_code for _ in range(2)] == [204, 204]
    other = client.post("/v1/items", json=LAMP | {"interests": ["dark"]})
    assert (other.status_code, other.json()["type"]) == (409, "interests-stay")
    assert "keeps its semantic ID and its interests (light)" in other.json()["detail"]
    again = client.post("/v1/items", json=LAMP | {"title": "The lamp again"}).json()
    assert again == {"item_id": "lamp", "sids": sid, "is_new": True}
    body = {"item_id": "item04", "title": "New again", "interests": known["interests"]}
    assert client.post("/v1/items", json=body).json()["is_new"] is True
    for replica in _replicas(arguments, client):
        assert replica.get("/v1/items/lamp").json()["title"] == "The lamp again"
        item = replica.get("/v1/items/item04").json()
        assert (item["title"], item["price"], item["sid"]) == ("New again", None, known["sid"])
        assert _found(replica, "again") in (["lamp", "item04"], ["item04", "lamp"])
        assert replica.get("/v1/models").json()["data"][0]["num_hidden_items"] == 0


def test_an_item_may_come_before_it_is_available(arguments):
    client = serve_without_ray(arguments)
    client.post("/v1/items", json=LAMP | {"available": False})
    assert _found(client, "brass") == []
    assert client.patch("/v1/items/lamp", json={"available": True}).json()["available"] is True
    assert _found(client, "brass") == ["lamp"]


@pytest.mark.parametrize(
    ("method", "item", "body", "status", "cause"),
    [
        ("PATCH", "ghost", {"price": 1}, 404, "unknown-item"),
        ("DELETE", "ghost", None, 404, "unknown-item"),
        ("PATCH", "item01", {"title": None}, 422, "invalid-request"),
        ("PATCH", "item01", {"interests": ["x"]}, 422, "invalid-request"),
        ("PATCH", "item01", {"price": -1}, 422, "invalid-request"),
        ("PATCH", "item01", {"item_id": "item02"}, 422, "invalid-request"),
        ("PATCH", "item01", {"image_uri": "file:///etc/passwd"}, 422, "image-not-allowed"),
        ("PATCH", "item01", {"image_uri": "http://169.254.169.254/"}, 422, "image-not-allowed"),
    ],
)
def test_a_change_that_cannot_be_made_is_a_problem_and_writes_nothing(arguments, tmp_path, method, item, body, status, cause):
    client = serve_without_ray(arguments)
    reply = client.request(method, f"/v1/items/{item}", json=body)
    assert (reply.status_code, reply.json()["type"]) == (status, cause)
    assert not (tmp_path / "items").exists()


def test_a_deleted_item_cannot_be_changed(arguments):
    client = serve_without_ray(arguments)
    client.delete("/v1/items/item01")
    assert client.patch("/v1/items/item01", json={"price": 1}).json()["type"] == "unknown-item"


def test_items_are_changed_up_to_a_limit(arguments):
    client = serve_without_ray(arguments.model_copy(update={"max_changed_items": 1}))
    assert client.patch("/v1/items/item01", json={"price": 2}).status_code == 200
    refused = client.delete("/v1/items/item02")
    assert (refused.status_code, refused.json()["type"]) == (409, "too-many-changed")
    assert "1 items were changed or deleted since the run" in refused.json()["detail"]


def test_when_every_item_is_taken_out_there_is_nothing_to_list(arguments):
    client = serve_without_ray(arguments)
    for at in range(NUM_ITEMS):
        client.delete(f"/v1/items/item{at:02d}")
    for request in ({"history": ["item01"]}, {"user_id": "nobody"}, {"history": ["item01"], "exclude_history": True}):
        assert client.post("/v1/recommend", json=request).json()["type"] == "no-items-left"
    assert _found(client, "") == []
    assert serve_without_ray(arguments, "two").get("/healthz").status_code == 200  # it warms up with nothing to list


def test_availability_costs_a_request_nothing(arguments):
    """The mask is made when something changes; a request without filters takes it as it is."""
    client = serve_without_ray(arguments)
    assert check_request(client.service, RecommendRequest(history=["item01"])).allowed is None
    client.delete("/v1/items/item02")
    _, run = client.service.version(None)
    assert check_request(client.service, RecommendRequest(history=["item01"])).allowed is run.listed_words


def test_changes_say_the_same_as_a_run_that_was_made_so(tiny_run, tmp_path):
    """Brute force: a run of which the changed table is its own."""
    items = artifacts.read_table(tiny_run, "items")
    rows = items.slice(3, 2).set_column(1, ITEM_SCHEMA.field("title"), [["One title", "Another title"]])
    changed = assemble(read_run(VersionSettings(run_dir=tiny_run.root), "cpu"), None, Changes(rows, ["item07", "ghost"]))
    made = write_run(str(tmp_path))
    put(made, "items", pa.concat_tables([items.slice(0, 3), rows, items.slice(5)]))
    whole = assemble(read_run(VersionSettings(run_dir=made.root), "cpu"))
    places = np.arange(NUM_ITEMS)
    assert changed.facts.table.take(places).equals(whole.facts.table.take(places))
    for query in ("title", "one", "another title", "title item03", "item05"):
        found = search_titles(whole.facts, query, NUM_ITEMS)
        np.testing.assert_array_equal(search_titles(changed.facts, query, NUM_ITEMS), found)
    np.testing.assert_array_equal(changed.facts.price, whole.facts.price)
    listed = np.ones(NUM_ITEMS, bool)
    listed[whole.facts.ids.find(["item07"])] = False
    np.testing.assert_array_equal(changed.listed, listed)
    np.testing.assert_array_equal(changed.listed_words, pack(listed))
    np.testing.assert_array_equal(changed.popular, whole.popular[listed[whole.popular]])


def test_all_that_may_change_is_a_fact_of_a_new_item():
    assert set(ItemChange.model_fields) == {
        "title", "description", "brand", "categories", "price", "currency", "image_uri", "available",
    }  # fmt: skip
