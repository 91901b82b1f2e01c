"""What stands before Ray Serve's routing: replicas that die, and refusals of the proxy."""

import asyncio

import httpx
import pytest

from serve.contract.problems import overloaded, rate_limited
from serve.edge import ASKED_AGAIN, Edge


class Replicas:
    """Stands for the proxy and its replicas: the first `deaths` requests get no answer at all."""

    def __init__(
        self, deaths: int = 0, answer: tuple[int, bytes, bytes] = (200, b"application/json", b"{}"), prefix: str = ""
    ) -> None:
        self.deaths, self.answer, self.prefix, self.bodies = deaths, answer, prefix, list[bytes]()

    async def __call__(self, scope, receive, send) -> None:
        scope["root_path"] = self.prefix  # as the proxy does
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if len(self.bodies) <= self.deaths:
            return
        status, kind, content = self.answer
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": content})


def _post(app, path: str = "/v1/recommend", content: bytes = b"hello") -> httpx.Response:
    return _ask(app, "POST", path, content)


def _ask(app, method: str, path: str, content: bytes = b"hello") -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=Edge(app, pauses_seconds=(0, 0, 0)))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(ask())


def test_a_request_whose_replica_died_is_asked_again_with_its_body():
    replicas = Replicas(deaths=2)
    assert _post(replicas).status_code == 200
    assert replicas.bodies == [b"hello"] * 3


def test_when_all_replicas_are_dead_the_client_is_told_to_come_again():
    replicas = Replicas(deaths=100)
    reply = _post(replicas)
    assert (reply.status_code, reply.json()["type"], reply.headers["retry-after"]) == (503, "not-ready", "1")
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(replicas.bodies) == 4


@pytest.mark.parametrize("prefix", ["", "/shop"])
@pytest.mark.parametrize(
    ("method", "path", "times"),
    [
        ("POST", "/v1/models", 1),
        ("POST", "/v1/unheard", 1),
        ("POST", "/v1/recommend/", 1),
        ("PATCH", "/v1/items/lamp", 1),
        ("DELETE", "/v1/items/lamp", 1),
        ("PATCH", "/v1/items", 1),
        ("POST", "/v1/recommend", 2),
        ("POST", "/v1/items", 2),
        ("GET", "/v1/models", 2),
    ],
)
def test_what_may_not_be_done_twice_is_asked_once_under_every_prefix(prefix, method, path, times):
    replicas = Replicas(deaths=1, prefix=prefix)
    assert _ask(replicas, method, prefix + path).status_code == (503 if times == 1 else 200)
    assert len(replicas.bodies) == times


def test_what_is_asked_again_are_routes(client):
    posts = {route.path for route in client.service_api.routes if "POST" in route.methods}
    assert posts >= ASKED_AGAIN


def test_a_large_body_is_not_kept():
    replicas = Replicas(deaths=1)
    assert _post(replicas, content=b"x" * 1_000_001).status_code == 503
    assert [len(body) for body in replicas.bodies] == [1_000_001]


@pytest.mark.parametrize(
    ("status", "cause", "detail"),
    [
        (429, "overloaded", "too many lists wait already; try again after the time of Retry-After"),
        (503, "not-ready", "this replica is starting or going down"),
        (408, "deadline-passed", "there was no answer in time"),
        (404, "unknown-route", "nothing is served here"),
    ],
)
def test_refusals_of_the_proxy_are_problems(status, cause, detail):
    reply = _post(Replicas(answer=(status, b"text/plain", b"dropped")))
    assert reply.json()["type"] == cause
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert detail in reply.json()["detail"]
    assert reply.headers.get("retry-after") == (None if status == 404 else "1")


def test_problems_of_a_replica_pass_as_they_are():
    content = b'{"type": "overloaded"}'
    reply = _post(Replicas(answer=(429, b"application/problem+json", content)))
    assert (reply.status_code, reply.content) == (429, content)


def test_after_a_full_line_the_same_lists_of_the_same_key_are_refused_for_a_moment_without_asking_a_replica():
    """One client that filled the line had everyone's lists refused here."""

    class Full:
        def __init__(self) -> None:
            self.asked = list[tuple[str, bytes]]()

        async def __call__(self, scope, receive, send) -> None:
            self.asked.append((scope["path"], dict(scope["headers"]).get(b"authorization", b"")))
            await overloaded(64).response()(scope, receive, send)

    async def ask() -> None:
        now, full = [0.0], Full()
        edge = Edge(full, clock=lambda: now[0])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=edge), base_url="http://x") as client:
            for now[0], path, key in (
                (0.0, "/v1/recommend", "a"),
                (0.0, "/v1/recommend", "a"),
                (0.09, "/v1/recommend", "a"),
                (0.09, "/v1/recommend", "b"),
                (0.09, "/v1/items", "a"),
                (0.11, "/v1/recommend", "a"),
            ):
                assert (await client.post(path, headers={"Authorization": key})).status_code == 429
        assert full.asked == [("/v1/recommend", b"a"), ("/v1/recommend", b"b"), ("/v1/items", b"a"), ("/v1/recommend", b"a")]

    asyncio.run(ask())


def test_a_key_that_used_up_its_rate_stops_nobody_else():
    class Limited:
        asked = 0

        async def __call__(self, scope, receive, send) -> None:
            self.asked += 1
            await rate_limited("one", 3).response()(scope, receive, send)

    async def ask(app: Limited) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Edge(app)), base_url="http://x") as client:
            for _ in range(3):
                await client.post("/v1/recommend")

    limited = Limited()
    asyncio.run(ask(limited))
    assert limited.asked == 3
