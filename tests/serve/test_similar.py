"""Items similar to an item over HTTP."""

import duckdb
import pytest

from digr import artifacts
from digr.data.event_store import IMPRESSIONS, impressions_log, load_log
from serve.items.catalogue import read_run
from serve.settings import AppArguments, VersionSettings
from tests.ranking.tiny_view import random_view
from tests.serve.ranked_run import write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, serve_without_ray, write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = write_run(str(tmp_path_factory.mktemp("run")))
    write_ranker(found)
    return found


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    other = write_run(str(tmp_path_factory.mktemp("other")))
    models = {
        "main": VersionSettings(run_dir=store.root),
        "own": VersionSettings(run_dir=store.root, ranker="off"),
        "bare": VersionSettings(run_dir=other.root),
    }
    state = str(tmp_path_factory.mktemp("state"))
    return serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, state_dir=state))


def _ask(client, **body):
    reply = client.post("/v1/similar", json={"item_id": "item07", "k": 50} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_neighbours_come_with_their_sources_weights_and_shared_interests(client):
    reply = _ask(client)
    assert reply["sources"] == ["text", "interests", "transitions", "next", "cooccurrence"]
    lists = random_view(5, num_items=NUM_ITEMS).contents["text"].neighbours
    start, end = lists.start[7], lists.start[8]
    near = dict(zip(lists.item[start:end].tolist(), lists.weight[start:end].tolist(), strict=True))
    by_text = {int(item["item_id"][4:]): item["weights"]["text"] for item in reply["items"] if "text" in item["weights"]}
    assert by_text == pytest.approx({place: weight for place, weight in near.items() if place != 7}, abs=1e-6)
    for item in reply["items"]:
        assert item["sources"] == list(item["weights"]) != []
        assert item["reasons"] == (["interest 1"] if int(item["item_id"][4:]) % 3 == 1 else [])  # those of item07
        assert item["title"] == f"Title {item['item_id']}"
    scores = [item["score"] for item in reply["items"]]
    assert scores == sorted(scores, reverse=True)
    assert {str(item["reasons"]) for item in _ask(client, explain=False)["items"]} == {"[]"}


def test_a_version_that_ranks_by_the_policy_alone_has_the_same_neighbours(client):
    assert _ask(client, model="own")["items"] == _ask(client)["items"]


def test_filters_and_sources_choose_among_the_neighbours(client):
    everything = {item["item_id"] for item in _ask(client)["items"]}
    some = _ask(client, allow={"categories": ["c1", "c2"]}, deny={"item_ids": ["item01"]})["items"]
    assert {item["item_id"] for item in some} == {item for item in everything if int(item[4:]) % 4 in (1, 2) and item != "item01"}
    one = _ask(client, sources=["transitions"])
    assert one["sources"] == ["transitions"]
    assert [item["score"] for item in one["items"]] == pytest.approx([1 / (61 + at) for at in range(len(one["items"]))])
    assert _ask(client, allow={"item_ids": []})["items"] == []


@pytest.mark.parametrize(
    ("body", "status", "kind", "detail"),
    [
        ({"item_id": "ghost"}, 404, "unknown-item", "item 'ghost' is not in the catalogue"),
        ({"model": "bare"}, 422, "no-ranking-index", "no ranking index, which is needed for similar items"),
        ({"sources": ["image"]}, 422, "no-such-source", "this version has no source image; it has text, interests"),
        ({"item_id": "new"}, 422, "not-indexed", "item 'new' was added after the run"),
        ({"sources": ["smell"]}, 422, "invalid-request", "sources.0"),
        ({"k": 301}, 422, "invalid-request", "k: Input should be less than or equal to 300"),
        ({"model": "x"}, 404, "unknown-model", "there is no model 'x'"),
    ],
)
def test_what_has_no_neighbours_is_a_problem(client, body, status, kind, detail):
    assert client.post("/v1/items", json={"item_id": "new", "title": "A new lamp"}).status_code == 200
    reply = client.post("/v1/similar", json={"item_id": "item07"} | body)
    assert (reply.status_code, reply.json()["type"]) == (status, kind)
    assert detail in reply.json()["detail"]


def test_an_item_that_came_later_changes_no_neighbours(client):
    before = _ask(client)["items"]
    assert client.post("/v1/items", json={"item_id": "item07b", "title": "Another lamp"}).status_code == 200
    assert _ask(client)["items"] == before
    assert _ask(client, k=3)["items"] == before[:3]


def test_an_item_that_was_taken_out_has_no_neighbours_and_is_none(client):
    near = _ask(client)["items"][0]["item_id"]
    assert client.delete(f"/v1/items/{near}").status_code == 204
    assert near not in {item["item_id"] for item in _ask(client)["items"]}
    reply = client.post("/v1/similar", json={"item_id": near})
    assert (reply.status_code, reply.json()["type"]) == (404, "unknown-item")


def test_an_index_of_other_items_is_not_served(tmp_path):
    store = write_run(str(tmp_path))
    write_ranker(store)
    own = VersionSettings(run_dir=store.root, ranker="off")
    assert read_run(own, "cpu").item_index is not None
    made = artifacts.require(store, "ranking_index").model_copy(update={"inputs": {"items": "another"}})
    artifacts.commit(store, made)
    with pytest.raises(ValueError, match=r"ranking_index: made from items another, but .* is now "):
        read_run(own, "cpu")


def test_a_list_has_an_id_of_its_own_and_is_logged_with_what_its_items_carry(client):
    with_reasons, without = _ask(client, k=3), _ask(client, k=3, explain=False)
    assert with_reasons["recommendation_id"] != without["recommendation_id"]
    client.service.impressions.commit.flush()
    with duckdb.connect() as connection:
        load_log(connection, impressions_log(client.service.arguments.events_dir), "lists", IMPRESSIONS.names)
        rows = connection.sql("SELECT * FROM lists").to_arrow_table().to_pylist()
    logged = {row["recommendation_id"]: row for row in rows}
    for reply in (with_reasons, without):
        row = logged[reply["recommendation_id"]]
        assert (row["list_source"], row["model"], row["user_id"], row["shadow"]) == ("similar", "main", None, False)
        assert [(item["item_id"], item["position"], item["sources"]) for item in row["items"]] == [
            (item["item_id"], position, item["sources"]) for position, item in enumerate(reply["items"], 1)
        ]
        named = [(item["reasons"] or [None])[0] is not None for item in with_reasons["items"]]
        assert [item["interest"] is not None for item in row["items"]] == named
        assert any(named)
