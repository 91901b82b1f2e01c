"""Keys, rate limits and bounded bodies, before any route."""

import asyncio
import json
from collections.abc import Sequence

import pytest
import typer
from fastapi import FastAPI
from typer.testing import CliRunner

from serve.keys import TokenBucket, find_key, make_key, print_key, read_keys, written
from serve.middleware.access import access
from serve.middleware.callers import KeyRing
from serve.middleware.gate import MAX_BODIES_OF_CALLER, Gate
from serve.replicas.metrics import Metrics
from serve.settings import AppArguments
from tests.patience import CEILING_SECONDS
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray

BODY = {"history": ["item01"], "k": 1}


def _record(name: str, role: str, **more) -> tuple[str, str]:
    key, record = make_key(name, role)
    return key, written(record.model_copy(update=more))


@pytest.fixture(scope="module")
def keyed(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (reader, first), (admin, second), (hasty, third) = (
        _record("reader", "read"),
        _record("boss", "admin"),
        _record("hasty", "read", requests_per_second=0.01, burst=2),
    )
    (folder / "keys.toml").write_text(first + second + third)
    arguments = AppArguments(
        run_dir=tiny_run.root,
        beam_width=BEAM_WIDTH,
        max_pending=1,
        keys_file=str(folder / "keys.toml"),
        state_dir=str(folder),
        max_body_bytes=2000,
    )
    client = serve_without_ray(arguments, peer="10.1.2.3")
    return client, {"reader": reader, "boss": admin, "hasty": hasty}


def _with(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens_the_routes_from_anywhere(keyed):
    client, keys = keyed
    assert client.post("/v1/recommend", json=BODY, headers=_with(keys["reader"])).status_code == 200


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer digr_wrong"}, {"Authorization": "Basic x"}, {"Authorization": "Bearer"}]
)
def test_without_a_valid_key_the_answer_is_401(keyed, header):
    reply = keyed[0].post("/v1/recommend", json=BODY, headers=header)
    assert (reply.status_code, reply.json()["type"], reply.headers["www-authenticate"]) == (401, "unauthorised", "Bearer")
    assert reply.json()["detail"] == "send `Authorization: Bearer <key>` with a key of this deployment"


def test_changes_need_an_admin_key(keyed):
    client, keys = keyed
    for path, body in (("/v1/items", {"item_id": "n", "title": "N"}), ("/v1/models", {"action": "roll_back"})):
        refused = client.post(path, json=body, headers=_with(keys["reader"]))
        assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
        assert refused.json()["detail"] == "this route needs an admin key, 'reader' is one for read"
        assert client.post(path, json={}, headers=_with(keys["boss"])).status_code == 422
    for method, path in (("PATCH", "/v1/items/item01"), ("DELETE", "/v1/items/item01"), ("POST", "/v1/items/bulk")):
        assert client.request(method, path, headers=_with(keys["reader"])).json()["type"] == "forbidden"


def test_health_and_readiness_need_no_key(keyed):
    assert keyed[0].get("/healthz").status_code == 200
    assert keyed[0].get("/readyz").json() == {"status": "ready"}


def test_a_key_that_used_up_its_rate_is_told_when_to_come_again(keyed):
    client, keys = keyed
    statuses = [client.get("/v1/models", headers=_with(keys["hasty"])).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = client.get("/v1/models", headers=_with(keys["hasty"]))
    assert refused.json()["type"] == "rate-limited"
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert "the key 'hasty' has used up its rate; try again in" in refused.json()["detail"]
    assert client.get("/v1/models", headers=_with(keys["reader"])).status_code == 200


def test_a_bucket_fills_at_its_rate():
    now = [0.0]
    bucket = TokenBucket(rate=2.0, burst=3, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_without_keys_only_this_machine_is_answered(tiny_run, client):
    assert client.post("/v1/recommend", json=BODY).status_code == 200
    outside = serve_without_ray(AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1), peer="10.1.2.3")
    reply = outside.post("/v1/recommend", json=BODY)
    assert (reply.status_code, reply.json()["type"]) == (401, "unauthorised")
    assert reply.json()["detail"].startswith("this deployment has no keys, so it answers only programs and browsers of this")


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": ""}]
)
def test_without_keys_a_page_of_another_site_is_not_answered(client, headers):
    assert client.post("/v1/recommend", json=BODY, headers=headers).status_code == 401
    assert client.post("/v1/recommend", json=BODY, headers={"Origin": "http://localhost:8000"}).status_code == 200


def test_a_stored_key_cannot_be_used_as_a_key():
    key, record = make_key("x", "read")
    other, _ = make_key("x", "read")
    assert find_key([record], key) == record
    assert find_key([record], other) is None
    assert find_key([record], record.hash) is None
    assert key not in record.model_dump_json()


def _keys(*words: str):
    command = typer.Typer(rich_markup_mode=None)
    command.command()(print_key)
    return CliRunner().invoke(command, list(words))


def test_the_command_makes_a_key_and_its_record(tmp_path):
    made = _keys("shop", "--role", "admin")
    assert made.exit_code == 0
    (tmp_path / "keys.toml").write_text(made.stdout)
    record = find_key(read_keys(tmp_path / "keys.toml"), made.stderr.split()[-1])
    assert (record.name, record.role) == ("shop", "admin")
    (tmp_path / "keys.toml").write_text(_keys("a\x1b[31m").stdout)
    assert [(record.name, record.role) for record in read_keys(tmp_path / "keys.toml")] == [("a\x1b[31m", "read")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'NAME'"),
        (["x" * 65], "String should have at most 64 characters"),
        (["shop", "--role", "owner"], "'owner' is not one of 'read', 'admin'"),
    ],
)
def test_a_wrong_name_or_role_makes_no_key(words, message):
    found = _keys(*words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr and "digr_" not in found.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; make keys with `digr keys NAME`"),
        ("keys = 3 3", "not valid TOML"),
        ("keys = []", "keys: List should have at least 1 item"),
        ('[[keys]]\nname = "x"\nrole = "owner"', "keys.0.role: Input should be 'read' or 'admin'"),
    ],
)
def test_a_wrong_key_file_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        KeyRing(str(tmp_path / "keys.toml"))


class Asked:
    """One request to a gate before a route that reads nothing, with a body that comes in parts."""

    def __init__(self, method: str, path: str, key: str, parts: Sequence[bytes] = (), length: int | None = None) -> None:
        self.headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
        self.headers += [(b"content-length", str(length).encode())] if length is not None else []
        self.scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": self.headers}
        self.parts, self.num_received, self.sent = list(parts), 0, list[dict]()

    async def receive(self) -> dict:
        self.num_received += 1
        if not self.parts:
            await asyncio.Event().wait()  # the rest never comes
        return {"type": "http.request", "body": self.parts.pop(0), "more_body": True}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    def answer(self, gate: Gate) -> tuple[int, dict]:
        asyncio.run(gate(self.scope, self.receive, self.send))
        return self.told()

    def told(self) -> tuple[int, dict]:
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])


def _gate(keys_file: str, body_seconds: float = CEILING_SECONDS) -> Gate:
    api = FastAPI(openapi_url=None)

    @api.get("/healthz")
    @access("public")
    async def health() -> dict[str, str]:
        return {}

    arguments = {"keys": KeyRing(keys_file), "metrics": Metrics("one"), "max_body_bytes": 2000, "body_seconds": body_seconds}
    return Gate(api, routes=api.routes, **arguments)


@pytest.fixture
def two_keys(tmp_path) -> tuple[str, str, str]:
    (one, first), (two, second) = _record("one", "read", burst=1000), _record("two", "read")
    (tmp_path / "keys.toml").write_text(first + second)
    return str(tmp_path / "keys.toml"), one, two


def test_a_body_that_does_not_arrive_is_a_problem(two_keys):
    status, problem = Asked("POST", "/v1/items", two_keys[1], length=5).answer(_gate(two_keys[0], 0.01))
    assert (status, problem["detail"]) == (408, "the body did not arrive within 0.01 seconds")


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 405), ("DELETE", 405)])
def test_a_public_path_answers_before_any_body_arrives(two_keys, method, status):
    """2,100 slow `POST /healthz` held a request with a key for 11 seconds."""
    asked = Asked(method, "/healthz", "", length=5)
    assert asked.answer(_gate(two_keys[0]))[0] == status
    assert asked.num_received == 0


@pytest.mark.parametrize(
    ("length", "parts", "num_received"), [(2001, [b"x"], 0), (None, [b"x" * 1000] * 9, 3), (5, [b"x" * 2001] * 2, 1)]
)
def test_no_more_of_a_large_body_is_read_than_may_come(two_keys, length, parts, num_received):
    asked = Asked("POST", "/v1/recommend", two_keys[1], parts, length)
    status, problem = asked.answer(_gate(two_keys[0], 30))
    assert (status, problem["type"], asked.num_received) == (413, "body-too-large", num_received)
    assert problem["detail"] == "a body may have 2000 bytes; send less at once"


def test_slow_bodies_of_one_key_are_bounded_and_leave_room_for_other_keys(two_keys):
    keys_file, one, two = two_keys

    async def run() -> None:
        gate = _gate(keys_file)
        slow = [Asked("POST", "/v1/recommend", one) for _ in range(MAX_BODIES_OF_CALLER)]
        reading = [asyncio.ensure_future(gate(asked.scope, asked.receive, asked.send)) for asked in slow]
        while not all(asked.num_received for asked in slow):
            await asyncio.sleep(0)
        more, other = (Asked("GET", "/nowhere", key, [b""]) for key in (one, two))
        other.parts, other.receive = [], _empty
        for asked in (more, other):
            await gate(asked.scope, asked.receive, asked.send)
        assert (more.told()[0], more.told()[1]["type"], other.told()[0]) == (429, "too-many-bodies", 404)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        again = Asked("GET", "/nowhere", one)
        await gate(again.scope, _empty, again.send)
        assert again.told()[0] == 404

    asyncio.run(run())


async def _empty() -> dict:
    return {"type": "http.request", "body": b"", "more_body": False}


def _headers(*more: tuple[bytes, bytes], host: bytes = b"127.0.0.1") -> list[tuple[bytes, bytes]]:
    return [(b"host", host), *more]


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (_headers(host=b"["), "host"),
        (_headers(host=b"[::zz]"), "host"),
        (_headers(host=b"[1.2.3.4]"), "host"),
        (_headers(host=b"a b"), "host"),
        (_headers(host=b"a@b"), "host"),
        (_headers(host=b"a/b"), "host"),
        (_headers(host=b"a:99999"), "host"),
        (_headers(host=b"a:x"), "host"),
        (_headers(host="ä".encode()), "host"),
        (_headers((b"host", b"localhost")), "host"),
        (_headers((b"origin", b"http://[")), "origin"),
        (_headers((b"origin", b"evil.example")), "origin"),
        (_headers((b"origin", b"\xff\xfe")), "origin"),
        (_headers((b"origin", b"http://a"), (b"origin", b"http://b")), "origin"),
        (_headers((b"authorization", b"Bearer \xff")), "authorization"),
        (_headers((b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")), "authorization"),
        (_headers((b"content-length", b"-1")), "content-length"),
        (_headers((b"content-length", b"\xb2")), "content-length"),
        (_headers((b"content-length", b"1"), (b"content-length", b"2")), "content-length"),
        (_headers((b"content-type", b"application/\xe9")), "content-type"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/nowhere"])
def test_a_malformed_header_is_a_problem_that_names_it(client, headers, named, path):
    """A malformed Host or Origin was a 500."""
    asked = Asked("GET", path, "")
    scope = asked.scope | {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "root_path": ""}
    asyncio.run(client.service_api(scope, _empty, asked.send))
    status, problem = asked.told()
    assert (status, problem["type"]) == (400, "malformed-header")
    assert problem["detail"].startswith(f"the header {named} cannot be read: ")


def test_a_query_of_raw_bytes_is_a_problem(client):
    asked = Asked("GET", "/nowhere", "")
    asyncio.run(client.service_api(asked.scope | {"query_string": b"\xff", "root_path": ""}, _empty, asked.send))
    assert asked.told()[0] == 400


def test_no_websocket_is_opened(client):
    asked = Asked("GET", "/v1/models", "")
    asyncio.run(client.service_api(asked.scope | {"type": "websocket", "root_path": ""}, _empty, asked.send))
    assert asked.sent == [{"type": "websocket.close", "code": 1008}]
