"""A run with a ranker is answered in the ranker's order over all sources."""

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest
from digr.policy.decoding.search import Recommendation, recommend
from digr.ranking.neighbours import HistoryItems, Neighbours
from digr.ranking.sources import SOURCES, sources_of_families
from digr.ranking.systems import SERVED
from serve.items.catalogue import assemble, digests_of, read_run
from serve.lists.ranking import load_run_ranker, rank
from serve.settings import AppArguments, VersionSettings
from tests.ranking.tiny_view import random_view
from tests.serve.ranked_run import INTERESTS, write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, serve_without_ray, without_id, write_run

HISTORY = ["item03", "item40"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = write_run(str(tmp_path_factory.mktemp("run")))
    write_ranker(found)
    return found


@pytest.fixture(scope="module")
def client(store):
    return serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH))


@pytest.fixture(scope="module")
def run(store):
    return assemble(read_run(VersionSettings(run_dir=store.root), "cpu"))


def _ask(client, **body):
    reply = client.post("/v1/recommend", json={"history": HISTORY, "k": 10} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def _policy_list(run, allowed=None) -> Recommendation:
    prompt = run.prompt(run.facts.ids.find(HISTORY).tolist())
    return recommend(run.policy, run.trie, [prompt], BEAM_WIDTH, BEAM_WIDTH, allowed=allowed)[0]


def test_the_list_is_that_of_the_ranker_over_all_sources(client, run, store):
    ranker, items = load_run_ranker(store), [f"item{index:02d}" for index in range(NUM_ITEMS)]
    index = run.ranker.item_index
    assert run.trie.item_ids.take(pa.array(index.place_of)).to_pylist() == items
    assert index.row_of[index.place_of].tolist() == list(range(NUM_ITEMS))
    beams = [items.index(item) for item in _policy_list(run).item_ids]
    generated = Neighbours(np.array([0, len(beams)]), np.array(beams, np.int32), np.ones(len(beams), np.float32))
    ((_, found),) = ranker.lists.rank(HistoryItems(np.array([3, 40]), np.array([0, 2])), generated, 10)
    reply = _ask(client)
    assert (reply["source"], reply["proven"]) == ("ranker", None)
    assert [item["item_id"] for item in reply["items"]] == [items[place] for place in found[SERVED].candidates.item]
    assert [item["score"] for item in reply["items"]] == pytest.approx(found[SERVED].score.tolist())
    assert {name for item in reply["items"] for name in item["sources"]} <= {*SOURCES, *sources_of_families(["interests"])}
    assert all(item["sources"] for item in reply["items"])


def test_what_a_score_is_made_of_adds_up_to_it_but_for_a_constant(client):
    items = _ask(client)["items"]
    constants = [item["score"] - sum(item["contributions"].values()) for item in items]
    assert constants == pytest.approx([constants[0]] * len(items), abs=2e-3)
    assert set(items[0]["contributions"]) == {"counts", "text", "popularity", "repeat", "request", "interests"}
    assert {str(item["contributions"]) for item in _ask(client, explain=False)["items"]} == {"{}"}


def test_a_version_without_the_ranker_gives_the_policys_own_list(store, run):
    models = {"main": VersionSettings(run_dir=store.root, ranker="off")}
    reply = _ask(serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH)))
    assert reply["source"] == "policy"
    assert [item["item_id"] for item in reply["items"]] == _policy_list(run).item_ids[:10]
    assert {str(item["sources"]) for item in reply["items"]} == {"[]"}


def test_the_list_of_versions_says_which_have_a_ranker_and_why_others_have_none(store, tmp_path):
    other = write_run(str(tmp_path))
    models = {
        "ranked": VersionSettings(run_dir=store.root),
        "own": VersionSettings(run_dir=store.root, ranker="off"),
        "older": VersionSettings(run_dir=other.root),
        "older_own": VersionSettings(run_dir=other.root, ranker="off"),
    }
    versions = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH)).get("/v1/models").json()["data"]
    found = {version["id"]: version["ranker"] for version in versions}
    assert found == {"ranked": "on", "own": "off", "older": "missing", "older_own": "off"}


@pytest.mark.parametrize("k", [1, 5, BEAM_WIDTH])
def test_filters_and_k_are_exact(client, k):
    found = _ask(client, k=k, allow={"categories": ["c1"]}, exclude_history=True)["items"]
    assert len(found) == k
    assert all(int(item["item_id"][4:]) % 4 == 1 for item in found)
    few = _ask(client, k=k, allow={"item_ids": ["item03", "item07", "item11"]}, exclude_history=True)["items"]
    assert {item["item_id"] for item in few} <= {"item07", "item11"}
    assert len(few) == min(k, 2)


def _serving(view, group: int) -> set[str]:
    groups = view.families["interests"].groups[0]
    owner = np.repeat(np.arange(NUM_ITEMS), np.diff(groups.start))
    return {f"item{item:02d}" for item in owner[groups.group == group]}


@pytest.mark.parametrize("wish", [{"interest": " Home Espresso Brewing"}, {"text": "a machine to brew espresso at home"}])
def test_a_steered_list_has_more_of_what_is_wished_the_more_it_weighs(client, wish):
    wanted, shares = _serving(random_view(5, num_items=NUM_ITEMS), 1), []
    for weight in (-3, -0.5, 0.5, 3):
        items = _ask(client, steer=[wish | {"weight": weight}])["items"]
        shares.append(sum(item["item_id"] in wanted for item in items))
        assert all(item["item_id"] not in wanted or item["contributions"]["steer"] * weight > 0 for item in items)
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 10


def test_without_a_wish_or_with_one_of_no_weight_the_list_is_the_same(client):
    steers = ([], [{"interest": INTERESTS[0], "weight": 0}])
    plain, *others = (without_id(reply) for reply in (_ask(client), *(_ask(client, steer=steer) for steer in steers)))
    assert others == [plain, plain]


def test_filters_hold_for_what_is_wished_too(client):
    items = _ask(client, allow={"categories": ["c1"]}, steer=[{"interest": INTERESTS[1], "weight": 10}])["items"]
    assert len(items) == 10
    assert all(int(item["item_id"][4:]) % 4 == 1 for item in items)


@pytest.mark.parametrize(
    ("steer", "kind"),
    [
        ([{"interest": "cheese"}], "unknown-interest"),
        ([{"interest": "cheese", "text": "cheese"}], "invalid-request"),
        ([{}], "invalid-request"),
        ([{"text": "x", "weight": 11}], "invalid-request"),
    ],
)
def test_a_wish_that_means_nothing_is_a_problem(client, steer, kind):
    reply = client.post("/v1/recommend", json={"history": HISTORY, "steer": steer})
    assert reply.status_code == 422
    assert reply.json()["type"].endswith(kind)


def test_the_problem_of_an_unknown_interest_says_which_wish_it_is(client):
    steer = [{"text": "cheese"}, {"interest": INTERESTS[0]}, {"interest": "cheese"}]
    problem = client.post("/v1/recommend", json={"history": HISTORY, "steer": steer}).json()
    assert (problem["type"], problem["fields"]) == ("unknown-interest", ["steer.2.interest"])


def test_a_version_without_a_ranker_cannot_be_steered(store):
    models = {"main": VersionSettings(run_dir=store.root, ranker="off")}
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH))
    reply = client.post("/v1/recommend", json={"history": HISTORY, "steer": [{"text": "espresso"}]})
    assert (reply.status_code, reply.json()["type"].rsplit("/", 1)[-1].rsplit(":", 1)[-1]) == (422, "cannot-steer")


def test_lists_of_a_batch_are_those_of_each_request(client):
    bodies = [{"history": HISTORY, "k": 5}, {"history": ["item12"], "k": 3}]
    answers = client.post("/v1/recommend/batch", json={"requests": bodies}).json()
    (replies,) = answers.values()
    alone = [client.post("/v1/recommend", json=body).json() for body in bodies]
    assert [*map(without_id, replies)] == [*map(without_id, alone)]


def test_an_item_that_came_later_keeps_the_place_that_the_policy_gives_it(run):
    index, new = run.ranker.item_index, run.trie.num_items
    served = run.ranker._replace(item_index=index._replace(row_of=np.append(index.row_of, -1)))
    found = _policy_list(run)
    history = run.facts.ids.find(HISTORY)
    without = rank(served, history, found, 10, None, explain=True)
    places = np.insert(found.places, 2, new)
    with_new = rank(served, history, found._replace(places=places), 10, None, explain=True)
    assert with_new.places.tolist() == [*without.places[:2].tolist(), new, *without.places[2:9].tolist()]
    assert with_new.sources[2] == ["generation"]
    assert len(with_new.scores) == len(with_new.contributions) == 10
    behind = rank(served, history, found._replace(places=np.append(found.places, new)), 10, None, explain=False)
    assert behind.places.tolist() == without.places.tolist()


def test_a_changed_ranker_is_loaded_anew(tmp_path):
    store = write_run(str(tmp_path))
    settings = VersionSettings(run_dir=store.root)
    own, before = settings.model_copy(update={"ranker": "off"}), digests_of(settings)
    write_ranker(store)
    without = digests_of(own)
    assert digests_of(settings) not in (before, without)
    assert without != before  # reasons are by canonical interests with or without a ranker
    artifacts.commit(store, Manifest(name="ranker", seed=1))
    assert digests_of(own) == without


def test_an_item_that_was_taken_out_is_in_no_list_of_the_ranker(store, tmp_path):
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, state_dir=str(tmp_path)))
    before = _ask(client, k=BEAM_WIDTH)
    assert before["source"] == "ranker"
    gone = before["items"][0]["item_id"]
    client.delete(f"/v1/items/{gone}")
    after = _ask(client, k=BEAM_WIDTH)
    assert after["source"] == "ranker"
    assert gone not in [item["item_id"] for item in after["items"]]
    assert len(after["items"]) == BEAM_WIDTH
