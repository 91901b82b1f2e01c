"""What stands before Ray Serve's routing: replicas that die, and refusals of the proxy."""

import asyncio
import functools

import httpx
import pytest

from serve.contract.problems import LET_IN, overloaded, rate_limited, unauthorised
from serve.edge import ASKED_AGAIN, MAX_UNKNOWN, MAX_UNKNOWN_OF_KEY, Edge


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


class Holding:
    """Stands for a proxy whose replicas hold requests until told to answer; they know the key `good`."""

    def __init__(self) -> None:
        self.asked, self.released = list[str](), asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        key = dict(scope["headers"]).get(b"authorization", b"").decode()
        self.asked.append(key)
        if scope["path"] == "/held":
            await self.released.wait()
        if key in ("", "bad") or key.startswith("junk"):
            await unauthorised("send a key").response()(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 404, "headers": [(LET_IN.encode(), b"1")]})
            await send({"type": "http.response.body", "body": b""})


async def _flood(client: httpx.AsyncClient, replicas: Holding, keys: list[str], num_held: int) -> list[asyncio.Task]:
    """Begin a request with each key, and wait until so many are held and the others are answered."""
    before = len(replicas.asked)
    tasks = [asyncio.create_task(client.post("/held", headers={"Authorization": key} if key else {})) for key in keys]
    while len(replicas.asked) < before + num_held or sum(task.done() for task in tasks) < len(tasks) - num_held:
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("key", ["", "bad"])
def test_a_flood_of_requests_without_a_known_key_does_not_hold_up_a_key(key):
    """2,100 slow requests without a key all passed the proxy and a replica, and the next one with a key waited for 10 s."""

    async def ask() -> None:
        replicas = Holding()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Edge(replicas)), base_url="http://x") as client:
            tasks = await _flood(client, replicas, [key] * 2100, MAX_UNKNOWN_OF_KEY)
            refused = [task.result() for task in tasks if task.done()]
            assert len(refused) == 2100 - MAX_UNKNOWN_OF_KEY
            assert {(r.status_code, r.json()["type"], r.headers["retry-after"]) for r in refused} == {
                (429, "too-many-unknown", "1")
            }
            assert (await client.post("/free", headers={"Authorization": "good"})).status_code == 404
            replicas.released.set()
            assert [r.status_code for r in await asyncio.gather(*tasks)].count(401) == MAX_UNKNOWN_OF_KEY
            assert (await client.post("/free", headers={"Authorization": key} if key else {})).status_code == 401

    asyncio.run(ask())


def test_a_flood_leaves_the_proxys_own_health_to_load_balancers():
    """The node would be taken for dead."""

    async def ask() -> None:
        replicas = Holding()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Edge(replicas)), base_url="http://x") as client:
            tasks = await _flood(client, replicas, [""] * 100, MAX_UNKNOWN_OF_KEY)
            assert [(await client.get(path)).status_code for path in ("/free", "/-/healthz", "/-/routes")] == [429, 401, 401]
            replicas.released.set()
            await asyncio.gather(*tasks)

    asyncio.run(ask())


def test_keys_that_were_let_in_are_not_bounded_and_pass_a_flood_of_any_keys_until_they_are_removed():
    async def ask() -> None:
        replicas = Holding()
        edge = Edge(replicas)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=edge), base_url="http://x") as client:
            first = await client.post("/free", headers={"Authorization": "good"})
            assert LET_IN not in first.headers
            held = await _flood(client, replicas, ["good"] * 300, 300)
            held += await _flood(client, replicas, [f"junk{number}" for number in range(300)], MAX_UNKNOWN)
            assert (await client.post("/free", headers={"Authorization": "good"})).status_code == 404
            assert (await client.post("/free", headers={"Authorization": "new"})).status_code == 429
            replicas.released.set()
            await asyncio.gather(*held)
            assert (await client.post("/free", headers={"Authorization": "new"})).status_code == 404

    asyncio.run(ask())


def test_a_key_that_is_refused_is_no_longer_known():
    class Removed:
        is_removed = False

        async def __call__(self, scope, receive, send) -> None:
            if scope["path"] == "/held":
                await asyncio.Event().wait()
            if self.is_removed:
                await unauthorised("send a key").response()(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": [(LET_IN.encode(), b"1")]})
            await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        replicas = Removed()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Edge(replicas)), base_url="http://x") as client:
            post = functools.partial(client.post, headers={"Authorization": "a"})
            assert (await post("/free")).status_code == 200
            replicas.is_removed = True
            assert (await post("/free")).status_code == 401
            tasks = [asyncio.create_task(post("/held")) for _ in range(MAX_UNKNOWN_OF_KEY + 1)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().status_code for task in done] == [429]
            for task in waiting:
                task.cancel()

    asyncio.run(ask())


def test_a_replica_tells_whom_it_let_in_and_never_at_a_public_route(client):
    assert LET_IN in client.get("/v1/models").headers
    assert LET_IN in client.post("/v1/recommend", json={"k": "many"}).headers
    assert LET_IN not in client.get("/healthz").headers
    assert LET_IN not in client.get("/v1/models", headers={"Host": "example.com"}).headers
