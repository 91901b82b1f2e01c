"""Boosts and diversity of lists: of the ranker's, of the policy's own, and of those by popularity."""

import re

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.policy.decoding.search import recommend
from digr.ranking.diversity import diversify, intra_list_distance
from digr.ranking.steering import SCALE
from serve.items.catalogue import assemble, read_run
from serve.settings import AppArguments, VersionSettings
from tests.ranking.tiny_view import random_view
from tests.serve.ranked_run import INTERESTS, write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, put, serve_without_ray, without_id, write_run

HISTORY = ["item03", "item40"]
LISTS = {"ranker": {"history": HISTORY}, "policy": {"history": HISTORY, "model": "own"}, "popularity": {"user_id": "nobody"}}
"""A request for each who makes lists."""


def _themed_view():
    """Return a view in which the interests of items are of six themes, some of many items, as in a shop."""
    view, rng = random_view(5, num_items=NUM_ITEMS), np.random.default_rng(2)
    theme = rng.choice(6, NUM_ITEMS, p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.05])
    vectors = np.eye(6)[theme] + 0.1 * rng.random((NUM_ITEMS, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    family = view.families["interests"]._replace(vectors=vectors.astype(np.float16))
    return view._replace(families={"interests": family})


VIEW = _themed_view()
VECTORS = VIEW.families["interests"].vectors


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = write_run(str(tmp_path_factory.mktemp("run")))
    write_ranker(found, VIEW)
    items = artifacts.read_table(found, "items")
    brands = pa.array(["Acme" if index % 5 == 0 else None for index in range(NUM_ITEMS)])
    put(found, "items", {**{name: items[name] for name in items.schema.names}, "brand": brands})
    return found


@pytest.fixture(scope="module")
def models(store, tmp_path_factory):
    other = write_run(str(tmp_path_factory.mktemp("other")), currencies=("EUR", "USD"))
    return {
        "main": VersionSettings(run_dir=store.root),
        "own": VersionSettings(run_dir=store.root, ranker="off"),
        "bare": VersionSettings(run_dir=other.root),
    }


@pytest.fixture(scope="module")
def client(models):
    return serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH))


@pytest.fixture(scope="module")
def run(store):
    return assemble(read_run(VersionSettings(run_dir=store.root, ranker="off"), "cpu"))


def _post(client, maker, **body):
    reply = client.post("/v1/recommend", json={"k": 10} | LISTS[maker] | body)
    assert reply.status_code == 200, reply.text
    return reply


def _bytes(reply):
    """Return the body without the id of the list, which is new each time."""
    return re.sub(rb'"recommendation_id":"[0-9a-f]*",?', b"", reply.content)


def _ids(client, maker, **body):
    return [item["item_id"] for item in _post(client, maker, **body).json()["items"]]


def _vectors(item_ids):
    return VECTORS[[int(item[4:]) for item in item_ids]].astype(np.float64)


@pytest.mark.parametrize("maker", LISTS)
def test_without_boosts_and_diversity_a_reply_is_the_same_to_the_byte(client, maker):
    plain = _post(client, maker)
    assert plain.json()["source"] == maker
    unchanged = {"diversity": 0, "boosts": [{"where": {"categories": ["c1"]}, "weight": 0}]}
    assert _bytes(_post(client, maker, **unchanged)) == _bytes(plain)
    assert _bytes(_post(client, maker, diversity=0.0, boosts=[])) == _bytes(plain)


@pytest.mark.parametrize("maker", LISTS)
def test_the_more_diversity_the_less_alike_are_the_items(client, maker):
    lists = [_ids(client, maker, k=6, diversity=diversity) for diversity in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    distances = [intra_list_distance(_vectors(each)) for each in lists]
    assert {each[0] for each in lists} == {lists[0][0]}
    assert all(len(set(each)) == 6 for each in lists)
    assert distances == sorted(distances) and distances[-1] > distances[0] + 0.1


@pytest.mark.parametrize("diversity", [0.15, 0.5, 0.85])
def test_a_diverse_list_of_the_policy_is_that_of_the_formula_over_its_beam(client, run, diversity):
    prompt = run.prompt(run.facts.ids.find(HISTORY).tolist())
    found = recommend(run.policy, run.trie, [prompt], BEAM_WIDTH, BEAM_WIDTH)[0]
    rows = diversify(np.array(found.scores), _vectors(found.item_ids), 10, diversity)
    reply = _post(client, "policy", diversity=diversity).json()
    assert [item["item_id"] for item in reply["items"]] == [found.item_ids[row] for row in rows]
    assert [item["score"] for item in reply["items"]] == [found.scores[row] for row in rows]
    assert reply["proven"] is None


def test_a_diverse_list_of_the_ranker_is_that_of_the_formula_over_all_candidates(client):
    everything = _post(client, "ranker", k=BEAM_WIDTH, diversity=0, explain=False).json()["items"]
    whole = _post(client, "ranker", k=BEAM_WIDTH, diversity=1e-9, explain=False).json()["items"]
    assert [item["score"] for item in whole] == [item["score"] for item in everything]  # only equal scores change places
    diverse = _post(client, "ranker", diversity=0.9).json()["items"]
    assert not {item["item_id"] for item in diverse} <= {item["item_id"] for item in everything}
    assert all(item["sources"] and item["contributions"] for item in diverse)
    again = {item["item_id"]: item for item in everything}
    assert all(item["score"] == again[item["item_id"]]["score"] for item in diverse if item["item_id"] in again)


@pytest.mark.parametrize("maker", LISTS)
@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ({"categories": ["c1"]}, lambda number: number % 4 == 1),
        ({"brands": ["Acme"]}, lambda number: number % 5 == 0),
        ({"min_price": 20, "max_price": 30}, lambda number: 20 <= number <= 30 and number % 7),
        ({"item_ids": ["item51", "item58"]}, lambda number: number in (51, 58)),
        ({"brands": ["Acme"], "categories": ["c0"]}, lambda number: number % 20 == 0),
    ],
)
def test_the_more_a_condition_weighs_the_more_items_meet_it(client, maker, where, meets):
    shares = []
    for weight in (-10, -1, 0.5, 10):
        items = _post(client, maker, boosts=[{"where": where, "weight": weight}]).json()["items"]
        met = [bool(meets(int(item["item_id"][4:]))) for item in items]
        shares.append(sum(met))
        told = [item["contributions"]["boost"] for item in items]
        assert told == [SCALE * weight if each else 0 for each in met]
    assert shares == sorted(shares) and shares[0] < shares[-1]
    assert shares[-1] == min(10, sum(bool(meets(number)) for number in range(NUM_ITEMS)))


def test_boosts_add_to_the_rankers_scores_and_the_policys_probabilities(client, run):
    plain = {item["item_id"]: item["score"] for item in _post(client, "ranker", k=BEAM_WIDTH).json()["items"]}
    boosted = _post(client, "ranker", boosts=[{"where": {"categories": ["c1"]}, "weight": 0.2}]).json()["items"]
    for item in (item for item in boosted if item["item_id"] in plain):
        wanted = plain[item["item_id"]] + (0.2 * SCALE if int(item["item_id"][4:]) % 4 == 1 else 0)
        assert item["score"] == pytest.approx(wanted)
    prompt = run.prompt(run.facts.ids.find(HISTORY).tolist())
    exact = recommend(run.policy, run.trie, [prompt], NUM_ITEMS, NUM_ITEMS)[0]
    logs = dict(zip(exact.item_ids, exact.scores, strict=True))
    outside = exact.item_ids[-1]
    first = _post(client, "policy", boosts=[{"where": {"item_ids": [outside]}, "weight": 10}]).json()["items"][0]
    assert first["item_id"] == outside
    assert first["score"] == pytest.approx(logs[outside] + 10 * SCALE, abs=1e-4)


def test_a_boosted_item_that_no_source_proposes_says_so(client):
    usual = {item["item_id"] for item in _post(client, "ranker", k=BEAM_WIDTH, diversity=1).json()["items"]}
    names = [f"item{number:02d}" for number in range(NUM_ITEMS) if f"item{number:02d}" not in usual]
    items = _post(client, "ranker", boosts=[{"where": {"item_ids": names}, "weight": 10}]).json()["items"]
    assert {item["item_id"] for item in items} <= set(names)
    assert all("boost" in item["sources"] for item in items)


def test_an_item_that_came_later_can_be_boosted(models, tmp_path):
    client = serve_without_ray(AppArguments(models=models, beam_width=1, state_dir=str(tmp_path)))
    for number in range(3):
        new = {"item_id": f"later{number}", "title": f"A new lamp {number}", "brand": "New"}
        assert client.post("/v1/items", json=new).status_code == 200
    boost = {"where": {"brands": ["New"]}, "weight": 10}
    for maker in LISTS:
        item = _post(client, maker, k=1, boosts=[boost]).json()["items"][0]
        assert item["item_id"].startswith("later")
        assert item["sources"] == (["boost"] if maker == "ranker" else [])


def test_filters_hold_for_boosted_and_diverse_lists(client):
    body = {"allow": {"categories": ["c1"]}, "exclude_history": True, "diversity": 0.5}
    for maker in LISTS:
        found = _ids(client, maker, boosts=[{"where": {"categories": ["c2", "c1"]}, "weight": 5}], **body)
        assert len(found) == 10 and all(int(item[4:]) % 4 == 1 for item in found)


def test_wishes_and_boosts_add_up(client):
    wish, boost = {"interest": INTERESTS[1], "weight": 1}, {"where": {"categories": ["c1"]}, "weight": 1}
    items = _post(client, "ranker", steer=[wish], boosts=[boost]).json()["items"]
    constants = [item["score"] - sum(item["contributions"].values()) for item in items]
    assert constants == pytest.approx([constants[0]] * len(items), abs=2e-3)
    assert {item["contributions"]["boost"] for item in items} == {0, SCALE}
    assert len({item["contributions"]["steer"] for item in items}) > 1


def test_lists_of_a_batch_are_those_of_each_request(client):
    boosts = [{"where": {"categories": ["c1"]}, "weight": 1}]
    bodies = [each | {"k": 5, "diversity": 0.4, "boosts": boosts} for each in LISTS.values()]
    replies = client.post("/v1/recommend/batch", json={"requests": bodies}).json()["replies"]
    alone = [client.post("/v1/recommend", json=body).json() for body in bodies]
    assert [*map(without_id, replies)] == [*map(without_id, alone)]


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        ({"diversity": 1.5}, "invalid-request", "diversity: Input should be less than or equal to 1"),
        ({"diversity": 0.1, "model": "bare"}, "no-ranking-index", "no ranking index, which is needed for diversity"),
        ({"boosts": [{"where": {}, "weight": 1}]}, "invalid-request", "a boost needs a condition in where"),
        ({"boosts": [{"where": {"brands": ["Acme"]}, "weight": 11}]}, "invalid-request", "less than or equal to 10"),
        ({"boosts": [{"where": {"brands": ["a"]}, "weight": 1}] * 9}, "invalid-request", "at most 8 items"),
        (
            {"boosts": [{"where": {"max_price": 3}, "weight": 1}], "model": "bare"},
            "currency-needed",
            "prices of this version are in EUR, USD",
        ),
    ],
)
def test_what_cannot_be_boosted_or_diversified_is_a_problem(client, body, kind, detail):
    reply = client.post("/v1/recommend", json={"history": HISTORY} | body)
    assert (reply.status_code, reply.json()["type"]) == (422, kind)
    assert detail in reply.json()["detail"]


def test_brands_are_a_filter_too(client):
    assert {int(item[4:]) % 5 for item in _ids(client, "policy", allow={"brands": ["Acme", "x"]})} == {0}
    rest = _ids(client, "policy", deny={"brands": ["Acme"]})
    assert len(rest) == 10 and 0 not in {int(item[4:]) % 5 for item in rest}
