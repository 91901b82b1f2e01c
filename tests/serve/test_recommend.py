"""Lists: histories, users, seeds, filters, cold paths, reasons, batches, and what cannot be answered."""

import re

import pytest
import torch

from digr import artifacts
from digr.policy.decoding.search import recommend
from digr.policy.vocabulary import sid_texts
from serve.items.catalogue import assemble, read_run
from serve.settings import AppArguments, VersionSettings
from tests.nested_interests import nest_rows
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, put, serve_without_ray, without_id, write_run


def _ask(client, **body):
    return client.post("/v1/recommend", json=body)


def _ids(client, **body) -> list[str]:
    reply = _ask(client, **body)
    assert reply.status_code == 200, reply.json()
    return [item["item_id"] for item in reply.json()["items"]]


@pytest.fixture(scope="module")
def run(tiny_run):
    return assemble(read_run(VersionSettings(run_dir=tiny_run.root), "cpu"))


def _offline(run, history: list[str], k: int, beam_width: int = BEAM_WIDTH, allowed=None) -> list[str]:
    prompt = run.prompt(run.facts.ids.find(history).tolist())
    return recommend(run.policy, run.trie, [prompt], k, beam_width, allowed=allowed)[0].item_ids


def test_the_list_is_the_one_of_the_beam_search(client, run):
    assert _ids(client, history=["item03", "item40"], k=7) == _offline(run, ["item03", "item40"], 7)


def test_the_old_address_answers_alike(client):
    body = {"history": ["item03"], "k": 4}
    old, new = (client.post(path, json=body).json() for path in ("/recommend", "/v1/recommend"))
    assert without_id(old) == without_id(new)
    assert old["recommendation_id"] != new["recommendation_id"]


def test_a_narrower_beam_is_used_where_one_is_asked_for(client, run):
    assert _ids(client, history=["item03"], k=2, beam_width=2) == _offline(run, ["item03"], 2, beam_width=2)


@pytest.mark.parametrize(("k", "beam_width"), [(1, 1), (2, 2), (5, 6), (7, BEAM_WIDTH)])
def test_a_list_says_whether_it_is_proven_and_is_then_that_of_all_items(client, run, k, beam_width):
    history = ["item03", "item40"]
    reply = client.post("/v1/recommend", json={"history": history, "k": k, "beam_width": beam_width}).json()
    prompt = run.prompt(run.facts.ids.find(history).tolist())
    (everything,) = recommend(run.policy, run.trie, [prompt], run.trie.num_items, run.trie.num_items)
    assert everything.is_proven(run.trie.num_items)
    (found,) = recommend(run.policy, run.trie, [prompt], beam_width, beam_width)
    assert reply["proven"] is found.is_proven(k)
    if reply["proven"]:
        assert [item["score"] for item in reply["items"]] == pytest.approx(everything.scores[:k], abs=1e-4)


def test_the_list_of_the_counts_is_not_said_to_be_proven(client):
    assert client.post("/v1/recommend", json={"user_id": "nobody"}).json()["proven"] is None


def test_seeds_are_the_newest_items(client):
    assert _ids(client, history=["item01", "item02"], seeds=["item03"]) == _ids(client, history=["item01", "item02", "item03"])
    assert _ids(client, seeds=["item03"]) == _ids(client, history=["item03"])


def test_a_known_user_has_the_newest_interactions_of_the_run(client):
    newest = [f"item{index}" for index in range(12, 17)]  # u1 read item10 to item16, five count
    assert _ids(client, user_id="u1") == _ids(client, history=newest)


def test_a_history_longer_than_the_policy_reads_is_answered_as_its_newest_items(tmp_path):
    """A scratch policy raised IndexError: it has a position for each of its `max_tokens` tokens."""
    store = write_run(str(tmp_path), max_tokens=11)
    run = assemble(read_run(VersionSettings(run_dir=store.root), "cpu"))
    assert run.max_history == run.policy.max_history == 2
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH))
    history = [f"item{index}" for index in range(10, 17)]
    assert _ids(client, history=history) == _ids(client, history=history[-2:]) == _ids(client, user_id="u1")
    sids = sid_texts(run.trie.codes[run.facts.ids.find(history)].numpy())
    long, short = run.policy.tokenize(["".join(sids)]), run.policy.tokenize(["".join(sids[-2:])])
    assert long[0].tolist() == short[0].tolist()


@pytest.mark.parametrize("body", [{"user_id": "nobody"}, {"history": ["ghost"]}, {"seeds": ["ghost", "ghost"]}])
def test_what_is_unknown_gets_the_popular_items_and_the_list_says_so(client, body):
    reply = _ask(client, k=4, **body).json()
    assert [item["item_id"] for item in reply["items"]][:3] == ["item05", "item06", "item07"]  # 3, 2 and 1 times in training
    assert reply["source"] == "popularity"
    assert {item["score"] for item in reply["items"]} == {None}
    assert reply["ignored_items"] == ([] if "user_id" in body else ["ghost"])


def test_popular_items_pass_the_filters_too(client):
    assert _ids(client, user_id="nobody", k=2, deny={"item_ids": ["item05"]}) == ["item06", "item07"]


def test_unknown_items_of_a_history_are_named_and_the_others_count(client):
    reply = _ask(client, history=["ghost", "item03", "ghost"], k=3).json()
    assert (reply["source"], reply["ignored_items"]) == ("policy", ["ghost"])
    assert [item["item_id"] for item in reply["items"]] == _ids(client, history=["item03"], k=3)


FILTERS = [
    ({"allow": {"categories": ["c1", "c2"]}}, lambda i: i % 4 in (1, 2)),
    ({"allow": {"min_price": 10, "max_price": 20}}, lambda i: i % 7 and 10 <= i <= 20),
    ({"allow": {"min_price": 50}}, lambda i: i % 7 and i >= 50),
    ({"allow": {"item_ids": ["item07", "item09", "ghost"]}}, lambda i: i in (7, 9)),
    ({"allow": {"categories": ["c1"], "max_price": 30}}, lambda i: i % 7 and i % 4 == 1 and i <= 30),
    ({"deny": {"categories": ["c1"], "item_ids": ["item08"]}}, lambda i: i % 4 != 1 and i != 8),
    ({"deny": {"min_price": 5, "max_price": 55}}, lambda i: not (i % 7 and 5 <= i <= 55)),
    ({"allow": {"currency": "EUR"}}, lambda i: i % 7),
    ({"deny": {"currency": "CHF", "max_price": 30}}, lambda i: True),
    ({"allow": {"categories": ["all"]}, "deny": {"categories": ["c0", "nothing"]}}, lambda i: i % 4 != 0),
    ({"allow": {}, "deny": {}}, lambda i: True),
    ({"exclude_history": True}, lambda i: i not in (3, 4)),
]


@pytest.mark.parametrize(("filters", "passes"), FILTERS)
def test_filters_leave_the_best_of_the_items_that_pass(client, run, filters, passes):
    expected = torch.tensor([[bool(passes(int(item[4:]))) for item in run.trie.item_ids.to_pylist()]])
    offline = _offline(run, ["item03", "item04"], BEAM_WIDTH, allowed=expected)
    assert _ids(client, history=["item03", "item04"], k=BEAM_WIDTH, **filters) == offline


def test_the_reasons_are_the_shared_interests_unless_they_are_not_wanted(client):
    items = _ask(client, history=["item03"], k=12).json()["items"]
    for item in items:
        shares = int(item["item_id"][4:]) % 3 == 0
        assert item["reasons"] == (["interest 0"] if shares else [])
    silent = _ask(client, history=["item03"], k=12, explain=False).json()["items"]
    assert [item["reasons"] for item in silent] == [[]] * 12


def test_a_known_users_interests_stand_before_the_history_and_are_reasons(tmp_path):
    store = write_run(str(tmp_path))
    ids = artifacts.read_table(store, "items")["item_id"].to_pylist()
    labels = [{"owner_id": item, "interest": f"interest {index % 3}"} for index, item in enumerate(ids)]
    labels += [{"owner": "user", "owner_id": "u2", "interest": text} for text in ("Interest 1", "Interest 7", "Interest 0")]
    put(store, "interest_labels", nest_rows("interest_labels", labels, ids, ["u2"]))
    trained = {"policy": {"prompt_interests": 2}, "tasks": {"max_text_chars": 100}}
    artifacts.commit(store, artifacts.require(store, "policy_sft").model_copy(update={"config": trained}))
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH))
    run = assemble(read_run(VersionSettings(run_dir=store.root), "cpu"))
    prompt = run.prompt(run.facts.ids.find(["item05"]).tolist(), run.shown_interests("u2"))
    assert prompt == "User interests: Interest 1; Interest 7\n" + run.prompt(run.facts.ids.find(["item05"]).tolist())
    assert run.shown_interests("u1") is run.shown_interests("ghost") is run.shown_interests(None) is None
    items = _ask(client, user_id="u2", k=12).json()["items"]
    assert [item["item_id"] for item in items] == recommend(run.policy, run.trie, [prompt], 12, BEAM_WIDTH)[0].item_ids
    # item05, the history, has interest 2; the user has interest 1, and in the prompt no more than one other
    reasons = {0: [], 1: ["interest 1"], 2: ["interest 2"]}
    assert [item["reasons"] for item in items] == [reasons[int(item["item_id"][4:]) % 3] for item in items]


def test_an_item_of_a_list_says_what_it_is(client, run):
    item = _ask(client, history=["item03"], k=1).json()["items"][0]
    place = int(run.facts.ids.find([item["item_id"]])[0])
    assert item["title"] == f"Title {item['item_id']}"
    assert item["sid"] == run.trie.codes[place].tolist()
    index = int(item["item_id"][4:])
    assert (item["price"], item["currency"]) == (None if index % 7 == 0 else index, "EUR")


@pytest.fixture(scope="module")
def two_currencies(tmp_path_factory):
    store = write_run(str(tmp_path_factory.mktemp("two")), currencies=("EUR", "JPY", None))
    return serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH))


def test_a_price_needs_its_currency_where_there_are_several(two_currencies):
    """A number was compared with the numbers of all items, whatever they were in."""
    (version,) = two_currencies.get("/v1/models").json()["data"]
    assert version["currencies"] == ["EUR", "JPY"]
    for side in ("allow", "deny"):
        refused = _ask(two_currencies, history=["item03"], **{side: {"max_price": 30}})
        assert (refused.status_code, refused.json()["type"], refused.json()["fields"]) == (422, "currency-needed", ["currency"])
        assert refused.json()["detail"] == (
            "prices of this version are in EUR, JPY; give a currency beside min_price and max_price"
        )
    found = _ids(two_currencies, history=["item03"], k=BEAM_WIDTH, allow={"max_price": 20, "currency": "JPY"})
    assert sorted(found) == [f"item{index:02d}" for index in (1, 4, 10, 13, 16, 19)]  # every third, but for item07
    kept = _ids(two_currencies, history=["item03"], k=BEAM_WIDTH, deny={"currency": "JPY"}, allow={"categories": ["c1"]})
    assert set(kept) <= {f"item{index:02d}" for index in range(1, 60, 4) if index % 3 != 1 or index % 7 == 0}


def test_a_price_without_a_currency_has_none(two_currencies):
    shown = [two_currencies.get(f"/v1/items/item{index:02d}").json() for index in (3, 4, 5)]
    assert [(item["price"], item["currency"]) for item in shown] == [(3.0, "EUR"), (4.0, "JPY"), (5.0, None)]


def test_a_batch_has_a_reply_or_a_problem_for_each_request(client):
    requests = [{"history": ["item03"], "k": 2}, {}, {"history": ["item04"], "k": 3}]
    replies = client.post("/v1/recommend/batch", json={"requests": requests}).json()["replies"]
    assert [item["item_id"] for item in replies[0]["items"]] == _ids(client, **requests[0])
    assert replies[1]["type"] == "empty-history"
    assert [item["item_id"] for item in replies[2]["items"]] == _ids(client, **requests[2])


ONE = ["item01"]
PROBLEMS = [
    ({}, 422, "empty-history", "there is nothing to go on from: give history"),
    ({"history": [], "seeds": []}, 422, "empty-history", "give history \\(item ids, oldest first\\), user_id or seeds"),
    ({"history": ONE, "user_id": "u1"}, 422, "two-histories", "history and user_id are both given"),
    ({"history": ONE, "k": 0}, 422, "invalid-request", "k: Input should be greater than or equal to 1"),
    ({"history": ONE, "k": 13}, 422, "k-too-large", "k is 13, at most the beam width 12 can be listed; ask for fewer"),
    ({"history": ONE, "k": 5, "beam_width": 4}, 422, "k-too-large", "k is 5, at most the beam width 4"),
    ({"history": ONE, "beam_width": 13}, 422, "beam-too-wide", "beam_width is 13, this deployment searches with at most 12"),
    ({"history": ONE * 1001}, 422, "invalid-request", "history: List should have at most 1000 items"),
    ({"history": ["x" * 257]}, 422, "invalid-request", "history.0: String should have at most 256 characters"),
    ({"history": ["item01\0"]}, 422, "invalid-request", "history.0: String should match pattern"),
    ({"history": [7]}, 422, "invalid-request", "history.0: Input should be a valid string"),
    ({"history": ONE, "topk": 3}, 422, "invalid-request", "topk: Extra inputs are not permitted"),
    ({"history": [*ONE, "ghost", "ghost"], "unknown": "refuse"}, 422, "unknown-items", "1 items of the history are not in the"),
    ({"history": ONE, "allow": {"categories": ["no"]}}, 422, "no-items-left", "leave none of the 60 items; loosen them"),
    ({"history": ONE, "deny": {"categories": ["all"]}}, 422, "no-items-left", "allow, deny and exclude_history leave none"),
    ({"history": ONE, "allow": {"currency": "eur"}}, 422, "invalid-request", "allow.currency: String should match pattern"),
    ({"history": ONE, "allow": {"max_price_usd": 3}}, 422, "invalid-request", "allow.max_price_usd: Extra inputs are not"),
    ({"history": ONE, "model": "other"}, 404, "unknown-model", "there is no model 'other'; loaded are main"),
]


@pytest.mark.parametrize(("body", "status", "cause", "detail"), PROBLEMS)
def test_what_cannot_be_answered_is_a_problem_with_its_cause(client, body, status, cause, detail):
    reply = _ask(client, **body)
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert (reply.status_code, problem["status"], problem["type"]) == (status, status, cause)
    assert re.search(detail, problem["detail"]), problem["detail"]
    if cause == "unknown-items":
        assert problem["unknown_items"] == ["ghost"]


def test_k_above_a_small_catalogue_is_a_problem(tiny_run):
    wide = serve_without_ray(AppArguments(run_dir=tiny_run.root, beam_width=100))
    assert len(_ids(wide, history=["item01"], k=NUM_ITEMS)) == NUM_ITEMS
    assert _ask(wide, history=["item01"], k=61).json()["detail"].startswith("k is 61, at most the 60 items of the catalogue")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"history": ["\\ud800"]}', b"[" * 100_000, b'{"k": 1e999}'])
def test_a_body_that_is_not_json_is_a_problem(client, content):
    reply = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    assert reply.json()["type"] in ("invalid-json", "invalid-request")


def test_the_cause_of_bad_json_is_told(client):
    reply = client.post("/v1/recommend", content=b'{"history": [', headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["type"] == "invalid-json"
    assert "the body cannot be read as JSON: Expecting value; send one JSON object" in reply.json()["detail"]


def test_unknown_routes_and_wrong_methods_are_problems(client):
    lost = client.get("/v2/recommend")
    assert (lost.status_code, lost.json()["type"]) == (404, "unknown-route")
    assert lost.json()["detail"] == "there is no /v2/recommend; /docs lists the routes"
    wrong = client.get("/v1/recommend")
    assert (wrong.status_code, wrong.json()["type"], wrong.headers["allow"]) == (405, "wrong-method", "POST")
    assert wrong.json()["detail"] == "GET cannot be used on /v1/recommend; use POST"


def test_a_policy_is_not_served_with_other_semantic_ids_than_those_it_was_trained_on(tmp_path):
    store = write_run(str(tmp_path))
    trained_on = artifacts.require(store, "item_sids").digest
    version = VersionSettings(run_dir=store.root)
    assert read_run(version, "cpu").sids_digest == trained_on
    artifacts.commit(store, artifacts.require(store, "item_sids").model_copy(update={"seed": 5}))
    with pytest.raises(
        ValueError, match=f"policy_sft: made from item_sids {trained_on}, but .* is now .*; run `digr train sft CONFIG --force`"
    ):
        read_run(version, "cpu")
