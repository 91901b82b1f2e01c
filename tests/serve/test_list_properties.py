"""Filters, steering, boosts, diversity and pages together: what holds for every mixture of them."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.settings import AppArguments, VersionSettings
from tests.serve.ranked_run import INTERESTS, write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, serve_without_ray, without_id, write_run

IDS = [f"item{number:02d}" for number in range(NUM_ITEMS)]
BRIEFLY = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    store = write_run(str(tmp_path_factory.mktemp("run")))
    write_ranker(store)
    models = {"main": VersionSettings(run_dir=store.root), "own": VersionSettings(run_dir=store.root, ranker="off")}
    return serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_paged=20))


conditions = st.one_of(
    st.builds(
        lambda names: {"categories": names}, st.lists(st.sampled_from(["c0", "c1", "c2", "c3", "x"]), min_size=1, max_size=2)
    ),
    st.builds(lambda ids: {"item_ids": ids}, st.lists(st.sampled_from(IDS), min_size=1, max_size=30)),
    st.builds(lambda low, span: {"min_price": low, "max_price": low + span}, st.integers(0, 50), st.integers(0, 40)),
)
weights = st.sampled_from([-10, -2, -0.3, 0, 0.3, 2, 10])
boosts = st.builds(lambda where, weight: {"where": where, "weight": weight}, conditions, weights)


@st.composite
def requests(draw):
    """Draw a request with any of the options."""
    body = {"k": draw(st.integers(1, BEAM_WIDTH)), "exclude_history": draw(st.booleans())}
    if draw(st.booleans()):
        body["history"] = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=7))
    else:
        body["user_id"] = draw(st.sampled_from(["u1", "nobody"]))
    body |= {name: draw(conditions) for name in draw(st.sets(st.sampled_from(["allow", "deny"])))}
    body["boosts"] = draw(st.lists(boosts, max_size=3))
    body["diversity"] = draw(st.sampled_from([0, 0.2, 0.7, 1]))
    if draw(st.booleans()):
        body["model"] = "own"
    else:
        wish = st.builds(lambda name, weight: {"interest": name, "weight": weight}, st.sampled_from(INTERESTS), weights)
        body["steer"] = draw(st.lists(wish, max_size=2))
    return body


def _meets(number, wanted):
    price = None if number % 7 == 0 else number
    return (
        ("categories" not in wanted or f"c{number % 4}" in wanted["categories"])
        and ("item_ids" not in wanted or IDS[number] in wanted["item_ids"])
        and ("min_price" not in wanted or (price is not None and wanted["min_price"] <= price <= wanted["max_price"]))
    )


def _allowed(body):
    """Return the items that a request allows, in plain Python."""
    past = body.get("history") or ([f"item{number}" for number in range(10, 17)][-5:] if body["user_id"] == "u1" else [])
    return {
        IDS[number]
        for number in range(NUM_ITEMS)
        if _meets(number, body.get("allow", {}))
        and not ("deny" in body and _meets(number, body["deny"]))
        and not (body["exclude_history"] and IDS[number] in past)
    }


def _ask(client, body):
    reply = client.post("/v1/recommend", json=body)
    if reply.status_code == 422:
        assert reply.json()["type"] == "no-items-left" and not _allowed(body)
        return None
    assert reply.status_code == 200, reply.text
    return reply.json()


@BRIEFLY
@given(requests())
def test_a_list_has_k_different_allowed_items_and_says_how_each_was_scored(client, body):
    reply, allowed = _ask(client, body), _allowed(body)
    if reply is None:
        return
    ids = [item["item_id"] for item in reply["items"]]
    assert len(set(ids)) == len(ids) == min(body["k"], len(allowed)) and set(ids) <= allowed
    weighed = [boost for boost in body["boosts"] if boost["weight"]]
    for item in reply["items"]:
        added = sum(3 * boost["weight"] for boost in weighed if _meets(int(item["item_id"][4:]), boost["where"]))
        assert item["contributions"].get("boost", 0) == pytest.approx(added, abs=1e-3)
    scores = [item["score"] for item in reply["items"]]
    if not body["diversity"] and reply["source"] != "popularity":
        assert scores == sorted(scores, reverse=True)


@BRIEFLY
@given(requests())
def test_pages_have_every_allowed_item_once_and_begin_with_the_list(client, body):
    plain = _ask(client, body)
    if plain is None:
        return
    pages, cursor = [], ""
    for _ in range(NUM_ITEMS + 1):
        pages.append(_ask(client, body | {"cursor": cursor}))
        cursor = pages[-1]["cursor"]
        if cursor is None:
            break
    joined = [item["item_id"] for page in pages for item in page["items"]]
    assert len(joined) == len(set(joined)) and set(joined) == _allowed(body)
    assert without_id(pages[0]) | {"cursor": None} == without_id(plain)
    for before, after in itertools.pairwise(pages):
        assert before["source"] == after["source"] or after["source"] == "popularity"


@BRIEFLY
@given(requests())
def test_options_of_no_effect_change_no_byte(client, body):
    plain = {name: value for name, value in body.items() if name not in ("boosts", "diversity", "steer")}
    idle = [boost | {"weight": 0} for boost in body["boosts"]]
    ours = client.post("/v1/recommend", json=plain | {"boosts": idle, "diversity": 0.0, "steer": []})
    theirs = client.post("/v1/recommend", json=plain)
    assert without_id(ours.json()) == without_id(theirs.json())


@BRIEFLY
@given(requests())
def test_a_batch_has_the_same_lists(client, body):
    answer = client.post("/v1/recommend/batch", json={"requests": [body, {"history": ["item01"]}, body]}).json()["replies"]
    alone = client.post("/v1/recommend", json=body).json()
    items = [each.get("items", []) for each in (*answer, alone)]
    ids = [[item["item_id"] for item in each] for each in items]
    assert ids[0] == ids[2] == ids[3]
    assert [item["score"] for item in items[0]] == pytest.approx([item["score"] for item in items[3]])  # but for the last digit


@BRIEFLY
@given(requests())
def test_a_wish_needs_a_ranker_whatever_else_is_asked(client, body):
    wishes = [{"interest": INTERESTS[0]}]
    reply = client.post("/v1/recommend", json=body | {"model": "own", "steer": wishes})
    assert (reply.status_code, reply.json()["type"]) == (422, "cannot-steer")
