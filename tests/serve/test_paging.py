"""Pages of a list: joined they have every allowed item once, and the first one is the list without pages."""

import base64
import json
import zlib

import pytest

from digr.policy.decoding.search import recommend
from serve.items.catalogue import assemble, read_run
from serve.settings import AppArguments, VersionSettings
from tests.serve.ranked_run import write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, serve_without_ray, without_id, write_run

HISTORY = ["item03", "item40"]
EVERYTHING = {f"item{number:02d}" for number in range(NUM_ITEMS)}
LISTS = {"ranker": {"history": HISTORY}, "policy": {"history": HISTORY, "model": "own"}, "popularity": {"user_id": "nobody"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = write_run(str(tmp_path_factory.mktemp("run")))
    write_ranker(found)
    return found


@pytest.fixture(scope="module")
def models(store):
    return {"main": VersionSettings(run_dir=store.root), "own": VersionSettings(run_dir=store.root, ranker="off")}


@pytest.fixture(scope="module")
def client(models):
    return serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_paged=25))


def _page(client, maker, cursor, **body):
    reply = client.post("/v1/recommend", json={"k": 7} | LISTS[maker] | body | {"cursor": cursor})
    assert reply.status_code == 200, reply.text
    return reply.json()


def _pages(client, maker, **body):
    """Return all pages up to the one without a cursor."""
    pages = [_page(client, maker, "", **body)]
    while pages[-1]["cursor"] is not None:
        pages.append(_page(client, maker, pages[-1]["cursor"], **body))
        assert len(pages) < 80
    return pages


def _ids(page):
    return [item["item_id"] for item in page["items"]]


def _joined(pages):
    return [item for page in pages for item in _ids(page)]


@pytest.mark.parametrize("maker", LISTS)
@pytest.mark.parametrize("k", [1, 7, 12])
def test_pages_have_every_item_once(client, maker, k):
    pages = _pages(client, maker, k=k)
    joined = _joined(pages)
    assert len(joined) == NUM_ITEMS and set(joined) == EVERYTHING
    assert [len(page["items"]) for page in pages[:-1]] == [k] * (len(pages) - 1)
    ranked = -(-25 // k)  # pages up to max_paged items
    assert [page["source"] for page in pages] == [maker] * ranked + ["popularity"] * (len(pages) - ranked)


@pytest.mark.parametrize("maker", LISTS)
def test_pages_have_every_allowed_item_once(client, maker):
    body = {"allow": {"categories": ["c1", "c2"]}, "deny": {"item_ids": ["item01"]}, "exclude_history": True}
    body |= {"diversity": 0.4, "boosts": [{"where": {"categories": ["c2"]}, "weight": 1}]}
    joined = _joined(_pages(client, maker, **body))
    allowed = {f"item{number:02d}" for number in range(NUM_ITEMS) if number % 4 in (1, 2)} - {"item01", *HISTORY}
    assert len(joined) == len(allowed) and set(joined) == allowed


@pytest.mark.parametrize("maker", LISTS)
def test_the_first_page_is_the_list_without_pages(client, maker):
    for body in ({}, {"diversity": 0.5}, {"boosts": [{"where": {"categories": ["c1"]}, "weight": 1}]}):
        plain = client.post("/v1/recommend", json={"k": 7} | LISTS[maker] | body).json()
        first = _page(client, maker, "", **body)
        assert plain["cursor"] is None and first["cursor"]
        assert without_id(first) | {"cursor": None} == without_id(plain)


def test_every_page_is_the_list_without_what_was_listed(client):
    pages, listed = _pages(client, "ranker"), []
    for page in pages[:4]:
        body = {"k": 7, **LISTS["ranker"], "deny": {"item_ids": listed}}
        assert _ids(client.post("/v1/recommend", json=body).json()) == _ids(page)
        listed += _ids(page)


def test_pages_of_an_exact_search_are_the_policys_whole_order(models, store):
    client = serve_without_ray(AppArguments(models=models, beam_width=NUM_ITEMS, max_paged=NUM_ITEMS))
    run = assemble(read_run(models["own"], "cpu"))
    exact = recommend(run.policy, run.trie, [run.prompt(run.facts.ids.find(HISTORY).tolist())], NUM_ITEMS, NUM_ITEMS)[0]
    pages = _pages(client, "policy")
    assert _joined(pages) == exact.item_ids
    assert all(page["proven"] for page in pages[:-1])
    scores = [item["score"] for page in pages for item in page["items"]]
    assert scores == pytest.approx(exact.scores, abs=1e-4)


def test_pages_by_popularity_are_the_order_of_the_counts(client):
    run = client.service.versions["main"].run
    assert _joined(_pages(client, "popularity")) == run.trie.item_ids.take(run.popular).to_pylist()


def test_a_diverse_page_is_unlike_the_pages_before(models):
    client = serve_without_ray(AppArguments(models=models, beam_width=NUM_ITEMS))
    whole = _joined(_pages(client, "policy", k=20, diversity=1.0)[:1])
    assert _joined(_pages(client, "policy", k=5, diversity=1.0)[:4])[:5] == whole[:5]
    second = _pages(client, "policy", k=5, diversity=1.0)[1]
    body = LISTS["policy"] | {"k": 5, "diversity": 1.0, "deny": {"item_ids": whole[:5]}}
    assert _ids(second) != _ids(client.post("/v1/recommend", json=body).json())  # which does not know what was listed


def test_items_that_are_added_between_pages_lead_to_no_duplicate(models, tmp_path):
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_paged=25, state_dir=str(tmp_path)))
    pages = [_page(client, "ranker", "")]
    for number in range(3):
        new = {"item_id": f"item0{number}a", "title": f"A lamp {number}"}
        assert client.post("/v1/items", json=new).status_code == 200
        pages.append(_page(client, "ranker", pages[-1]["cursor"]))
    assert len(set(_joined(pages))) == 28
    behind = _page(client, "ranker", pages[-1]["cursor"])
    assert behind["source"] == "popularity" and not set(_ids(behind)) & set(_joined(pages))
    assert client.post("/v1/items", json={"item_id": "item09a", "title": "A lamp 9"}).status_code == 200
    reply = client.post("/v1/recommend", json=LISTS["ranker"] | {"cursor": behind["cursor"]})
    assert (reply.status_code, reply.json()["type"]) == (409, "list-changed")
    assert "the catalogue has 64 items now, it had 63" in reply.json()["detail"]


def test_items_that_are_taken_out_between_pages_lead_to_no_duplicate_and_no_gap(models, tmp_path):
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_paged=8, state_dir=str(tmp_path)))
    gone, pages = ["item20", "item33"], [_page(client, "ranker", "")]
    while pages[-1]["cursor"] is not None:
        pages.append(_page(client, "ranker", pages[-1]["cursor"]))
        if len(pages) in (2, 4):  # among the ranked ones, and behind them
            late = gone[len(pages) // 2 - 1]
            assert client.delete(f"/v1/items/{late}").status_code == 204
    joined = _joined(pages)
    assert len(joined) == len(set(joined)) and EVERYTHING - set(joined) <= set(gone)


def test_what_is_left_when_the_catalogue_shrinks_to_nothing_is_an_empty_page(client):
    first = _page(client, "ranker", "", k=3)
    page = _page(client, "ranker", first["cursor"], allow={"item_ids": _ids(first)})
    assert (page["items"], page["cursor"]) == ([], None)


def test_a_cursor_of_another_build_is_a_problem(client, tmp_path):
    other = serve_without_ray(AppArguments(run_dir=write_run(str(tmp_path), seed=9).root, beam_width=BEAM_WIDTH))
    cursor = _page(other, "ranker", "")["cursor"]
    reply = client.post("/v1/recommend", json=LISTS["ranker"] | {"cursor": cursor})
    assert (reply.status_code, reply.json()["type"]) == (409, "list-changed")
    assert "another version answers now" in reply.json()["detail"]


def _packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(content)).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "abcd",
        _packed(b"{}"),
        _packed(b"[]"),
        _packed(json.dumps({"version": "x", "more": 1}).encode()),
        _packed(json.dumps({"version": "x", "passed": -1}).encode()),
        _packed(json.dumps({"version": "x", "earlier": [""]}).encode()),
        _packed(b'{"version": "' + b"x" * 50_000_000 + b'"}'),
        _packed(json.dumps({"version": "x"}).encode())[:-4],
    ],
)
def test_what_is_no_cursor_is_a_problem(client, cursor):
    reply = client.post("/v1/recommend", json=LISTS["ranker"] | {"cursor": cursor})
    assert (reply.status_code, reply.json()["type"]) == (422, "bad-cursor")
    assert "send the cursor of the reply before" in reply.json()["detail"]


def test_a_cursor_has_letters_that_need_no_escape_and_is_not_long(client):
    cursor = _pages(client, "ranker")[2]["cursor"]
    assert cursor.replace("-", "").replace("_", "").isalnum() and len(cursor) < 250
    reply = client.post("/v1/recommend", json=LISTS["ranker"] | {"cursor": "a+b/"})
    assert (reply.status_code, reply.json()["fields"]) == (422, ["cursor"])
