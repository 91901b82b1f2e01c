"""The client in both ways, waiting and awaiting: every route, connections that stay open, retries, and errors by kind."""

import asyncio
import inspect
import json
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from typer.testing import CliRunner

from serve.asking.answers import retry_seconds
from serve.asking.command_line import app, read_boost
from serve.client import (
    AsyncClient,
    BusyError,
    Client,
    ConflictError,
    EndpointError,
    InvalidRequestError,
    NotAllowedError,
    NotFoundError,
    ServerError,
)
from serve.contract.event_schemas import Event
from serve.contract.item_schemas import ItemChange, NewItem
from serve.contract.schemas import ItemBoost, ItemFilter, Problem, RecommendRequest
from serve.middleware.gate import KeyRing
from serve.routes import build_api
from serve.settings import AppArguments, VersionSettings
from tests.patience import CEILING_SECONDS
from tests.serve.http_server import serve_over_http
from tests.serve.ranked_run import write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, NUM_ITEMS, start_service, write_run

HISTORY = ["item03", "item40"]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    store = write_run(str(tmp_path_factory.mktemp("run")))
    write_ranker(store)
    models = {name: VersionSettings(run_dir=store.root) for name in ("one", "two")}
    arguments = AppArguments(models=models, beam_width=BEAM_WIDTH, state_dir=str(tmp_path_factory.mktemp("state")))
    with serve_over_http(build_api(start_service(arguments), KeyRing(""))) as address:
        yield address


def _items(url, path, body):
    return httpx.post(f"{url}{path}", json=body, timeout=CEILING_SECONDS).json()["items"]


class Awaited:
    """An `AsyncClient` whose methods wait, so that both ways are asked alike."""

    def __init__(self, *arguments, **options) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*arguments, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def wait(*arguments, **options):
            made = method(*arguments, **options)
            if inspect.isasyncgen(made):
                return self._loop.run_until_complete(_all(made))
            return self._loop.run_until_complete(made)

        return wait


async def _all(made):
    return [each async for each in made]


@pytest.fixture(params=[Client, Awaited])
def way(request):
    return request.param


def test_both_ways_have_the_same_methods_with_the_same_arguments():
    def methods(kind):
        return {
            name: [*inspect.signature(each).parameters.values()]
            for name, each in vars(kind).items()
            if inspect.isfunction(each) and not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) >= 12


def test_every_route_is_asked(way, url):
    with way(url) as client:
        items = client.recommend(HISTORY, k=3, diversity=0.3, boosts=[ItemBoost(where=ItemFilter(categories=["c1"]), weight=1)])
        body = {"history": HISTORY, "k": 3, "diversity": 0.3, "boosts": [{"where": {"categories": ["c1"]}, "weight": 1}]}
        assert [item.model_dump() for item in items] == httpx.post(
            f"{url}/v1/recommend", json=body, timeout=CEILING_SECONDS
        ).json()["items"]
        good, bad = client.answers([RecommendRequest(history=HISTORY, k=3), RecommendRequest(history=[])])
        assert len(good.items) == 3 and isinstance(bad, Problem) and bad.type == "empty-history"
        similar = client.similar("item07", k=4, sources=["text"], allow=ItemFilter(categories=["c1"]))
        body = {"item_id": "item07", "k": 4, "sources": ["text"], "allow": {"categories": ["c1"]}}
        assert [item.model_dump() for item in similar] == httpx.post(
            f"{url}/v1/similar", json=body, timeout=CEILING_SECONDS
        ).json()["items"]
        assert [item.title for item in client.find_items("title item42", 2)] == ["Title item42"]
        assert client.item("item10").title == "Title item10"
        added = client.add_item(NewItem(item_id=f"lamp {way.__name__}", title=f"A lamp {way.__name__}"))
        assert added.is_new and added.sids.keys() == {"one", "two"}
        changed = client.change_item(added.item_id, ItemChange(price=3.5, currency="EUR"))
        assert (changed.price, changed.title) == (3.5, f"A lamp {way.__name__}")
        lines = [NewItem(item_id=f"shade {way.__name__}", title="A shade"), {"item_id": added.item_id, "price": 4}, {"price": 1}]
        results = client.change_items(lines)
        assert [(each.line, each.status) for each in results] == [(1, "added"), (2, "changed"), (3, "failed")]
        assert results[2].problem.type == "invalid-json" and client.item(added.item_id).price == 4
        assert client.delete_item(added.item_id) is None
        with pytest.raises(NotFoundError, match="is not in the catalogue"):
            client.item(added.item_id)
        told = Event(event_id=f"first {way.__name__}", type="view", user_id=way.__name__, item_id="item20")
        rated = told.model_copy(update={"event_id": f"second {way.__name__}", "type": "rating", "rating": 4.0})
        assert client.send_event(told).accepted == 1
        reply = client.send_events([told, rated])
        assert (reply.accepted, reply.duplicates, reply.errors) == (1, 1, [])
        assert client.answer(RecommendRequest(user_id=way.__name__, k=3)).source == "ranker"
        assert client.promote("two").data[1].default
        assert client.roll_back().data[0].default
        assert [version.id for version in client.models().data] == ["one", "two"]


def test_pages_go_on_to_the_end_of_the_catalogue(way, url):
    with way(url) as client:
        pages = list(client.pages(RecommendRequest(history=HISTORY, k=12, allow=ItemFilter(categories=["c1", "c2"]))))
    ids = [item.item_id for page in pages for item in page.items]
    assert len(ids) == len(set(ids)) == NUM_ITEMS / 2
    assert [page.cursor is None for page in pages] == [False, False, True]


def _counting(answers: list[Response]) -> tuple[FastAPI, list[tuple]]:
    """Build a server that gives some answers in turn, and the connections on which it was asked."""
    api, seen = FastAPI(), []

    @api.get("/{path:path}")
    @api.post("/{path:path}")
    async def answer(request: Request) -> Response:
        seen.append(request.client)
        return answers[min(len(seen), len(answers)) - 1]

    return api, seen


def _problem(status: int, **headers: str) -> Response:
    content = Problem(type="x", title="Title", status=status, detail="what to do").model_dump_json()
    return Response(content, status, headers, media_type="application/problem+json")


GOOD = Response('{"data": []}', media_type="application/json")


def test_requests_share_a_connection(way):
    api, seen = _counting([GOOD])
    with serve_over_http(api) as address, way(address) as client:
        for _ in range(5):
            client.models()
    assert len(seen) == 5 and len(set(seen)) == 1


class Sleeps(list):
    """Waits that are asked for, and not waited for."""

    def __init__(self, way) -> None:
        super().__init__()
        self.way = way

    def __call__(self, seconds):
        self.append(seconds)
        return asyncio.sleep(0) if self.way is Awaited else None


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_asked_again_after_the_time_that_it_names(way, status):
    api, seen = _counting([_problem(status, **{"Retry-After": "2"}), _problem(status, **{"Retry-After": "3"}), GOOD])
    sleeps = Sleeps(way)
    with serve_over_http(api) as address, way(address, sleep=sleeps) as client:
        assert client.models().data == []
    assert (sleeps, len(seen)) == ([2.0, 3.0], 3)


@pytest.mark.parametrize(
    ("answer", "retries", "tries"),
    [
        (_problem(429, **{"Retry-After": "1"}), 2, 3),
        (_problem(429, **{"Retry-After": "1"}), 0, 1),
        (_problem(429, **{"Retry-After": "11"}), 2, 1),
        (_problem(429), 2, 1),
        (_problem(429, **{"Retry-After": "soon"}), 2, 1),
        (_problem(504, **{"Retry-After": "1"}), 2, 1),
        (_problem(500, **{"Retry-After": "1"}), 2, 1),
    ],
)
def test_tries_and_waits_are_bounded(way, answer, retries, tries):
    api, seen = _counting([answer])
    with (
        serve_over_http(api) as address,
        way(address, retries=retries, sleep=Sleeps(way)) as client,
        pytest.raises(EndpointError, match=r"^Title: what to do$"),
    ):
        client.models()
    assert len(seen) == tries


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (422, InvalidRequestError),
        (413, InvalidRequestError),
        (401, NotAllowedError),
        (403, NotAllowedError),
        (404, NotFoundError),
        (409, ConflictError),
        (429, BusyError),
        (503, BusyError),
        (504, BusyError),
        (500, ServerError),
        (502, ServerError),
        (418, EndpointError),
    ],
)
def test_the_kind_of_an_error_says_what_to_do(way, status, kind):
    with (
        serve_over_http(_counting([_problem(status)])[0]) as address,
        way(address) as client,
        pytest.raises(EndpointError, match=r"^Title: what to do$") as caught,
    ):
        client.models()
    assert type(caught.value) is kind and caught.value.status == status and caught.value.problem.type == "x"


def test_a_date_names_a_time_too():
    past = httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert retry_seconds(past) == 0
    assert retry_seconds(httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"})) > 1e6
    assert retry_seconds(httpx.Response(200, headers={"Retry-After": "1"})) is None


def test_a_client_that_was_closed_or_finds_no_server_says_so(way):
    with way("http://127.0.0.1:9") as client, pytest.raises(ConnectionError, match="no server listens there"):
        client.models()
    api, _ = _counting([GOOD])
    with serve_over_http(api) as address:
        client = Client(address)
        client.close()
        with pytest.raises(RuntimeError, match="client has been closed"):
            client.models()


def test_what_the_contract_does_not_allow_is_not_sent(way):
    with way("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="diversity"):
            client.recommend(HISTORY, diversity=2)
        with pytest.raises(ValueError, match="sources"):
            client.similar("a", sources=["smell"])
        with pytest.raises(ValueError, match="API key has characters"):
            way(key="a\n")


def test_commands_print_boosted_diverse_and_similar_items(url):
    def run(*words):
        found = CliRunner().invoke(app, [*words, "--json"], env={"DIGR_URL": url})
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)["items"]

    body = {"history": HISTORY, "k": 4, "diversity": 0.3}
    body |= {"boosts": [{"where": {"categories": ["c1"]}, "weight": 2}, {"where": {"item_ids": ["item05"]}, "weight": -1}]}
    words = ["ask", *HISTORY, "--k", "4", "--diversity", "0.3", "--boost", "category:c1=2", "--boost", "item:item05=-1"]
    assert run(*words) == _items(url, "/v1/recommend", body)
    body = {"item_id": "item07", "k": 4, "sources": ["text", "next"]}
    words = ["items", "similar", "item07", "--k", "4", "--source", "text", "--source", "next"]
    assert run(*words) == _items(url, "/v1/similar", body)
    shown = CliRunner().invoke(app, words, env={"DIGR_URL": url}).stdout.splitlines()
    assert shown[0].split() == ["#", "item", "title", "sources", "both"] and len(shown) == 5
    assert CliRunner().invoke(app, ["items", "similar", "ghost"], env={"DIGR_URL": url}).exit_code == 2


def test_a_boost_is_read_from_words():
    assert read_boost("brand:A=B=-0.5") == ItemBoost(where=ItemFilter(brands=["A=B"]), weight=-0.5)
    assert read_boost("item:a:b=1") == ItemBoost(where=ItemFilter(item_ids=["a:b"]), weight=1)
