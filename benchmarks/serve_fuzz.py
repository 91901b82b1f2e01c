"""Ten thousand valid and invalid requests made from the endpoint's own OpenAPI document: none may get a 5xx.

`DIGR_RUN=<folder of a run> python -m benchmarks.serve_fuzz` asks the application in this process; with DIGR_URL it asks a running
server. Half of the requests name real items, so that they reach the decoder; half have headers that no client means to send:
foreign, malformed, doubled, of any bytes. Every error must be a problem document that names its cause.
"""

import asyncio
import contextlib
import http.client
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import requests

from benchmarks.harness import Bar, Measurement, main

BAR = Bar(full=0, quick=0, quick_reason="a count of failures, none of which is allowed at any size")
NUM_REQUESTS, NUM_QUICK = 10_000, 400


SERVER_REFUSAL = b"Invalid HTTP request received."
"""What the HTTP server itself says to what is no HTTP, before any application is asked."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    content_type: str
    body: bytes


Headers = list[tuple[bytes, bytes]]
Send = Callable[[requests.PreparedRequest, Headers], Answer]
"""Sends a request with further headers, which stand for those of their names that it has."""

HOSTILE: dict[str, Sequence[bytes]] = {
    "host": [
        b"",
        b"localhost",
        b"[",
        b"[::1]",
        b"[::zz]:1",
        b"a b",
        b"a@b",
        b"evil.example",
        b"a:99999",
        b"\xff\xfe",
        b"x" * 3000,
    ],
    "origin": [
        b"null",
        b"http://localhost",
        b"http://[",
        b"http://[::1]:0",
        b"javascript:1",
        b"//x",
        b"\xe4",
        b"https://evil.example",
    ],
    "authorization": [b"", b"Bearer", b"bearer \xff", b"Basic eDp4", b"Bearer digr_x", b"Bearer " + b"x" * 5000, b"Bearer \x00"],
    "content-length": [b"0", b"5", b"-1", b"1e3", b"+1", b"\xb2", b"9" * 30, b"0x10", b""],
    "content-type": [
        b"",
        b"text/plain",
        b"application/json; charset=\xff",
        b'application/json; charset="',
        b"multipart/form-data",
    ],
    "transfer-encoding": [b"chunked", b"gzip, chunked", b"identity"],
    "referer": [b"http://[", b"https://evil.example/"],
    "x-forwarded-for": [b"10.0.0.1", b"\xff"],
    "range": [b"bytes=0-1", b"bytes=-"],
    "if-none-match": [b"*", b"\xff"],
    "cookie": [b"a=\xff; =", b"x" * 5000],
    "traceparent": [b"00-0-0-0", b"\xff"],
}
"""Values of headers by name, beside random bytes."""


class Fuzzed(NamedTuple):
    """All answers."""

    statuses: Counter[int]
    failures: list[str]
    """What was wrong with an answer, and of which request."""


def fuzz(document: dict[str, Any], send: Send, item_ids: Sequence[str], num_requests: int, seed: int = 0) -> Fuzzed:
    """Send requests made from an OpenAPI document, the same ones for the same seed.

    Args:
        document: OpenAPI, as `GET /openapi.json` gives it.
        send: sends one request and returns its answer.
        item_ids: ids of the catalogue.
    """
    found = Fuzzed(Counter(), [])
    rng = random.Random(seed)
    for prepared in _requests(document, item_ids, num_requests, random.Random(seed)):
        headers = hostile_headers(rng) if rng.random() < 0.5 else []
        answer = send(prepared, headers)
        found.statuses[answer.status] += 1
        if wrong := _wrong(answer):
            found.failures.append(f"{prepared.method} {prepared.url} {headers!r:.500} {prepared.body!r:.500}: {wrong}")
    return found


def hostile_headers(rng: random.Random) -> Headers:
    """Make one to three headers, some of them more than once."""
    headers: Headers = []
    for name in rng.choices(list(HOSTILE), k=rng.randint(1, 3)):
        for _ in range(rng.choice((1, 1, 1, 2))):
            value = rng.choice(HOSTILE[name]) if rng.random() < 0.7 else rng.randbytes(rng.randint(0, 40))
            headers.append((name.encode(), value))
    return headers


def _wrong(answer: Answer) -> str | None:
    from serve.contract.schemas import Problem

    if answer.status >= 500:
        return f"status {answer.status}"
    if answer.status >= 400 and answer.body != SERVER_REFUSAL:
        if not answer.content_type.startswith("application/problem+json"):
            return f"status {answer.status} as {answer.content_type}"
        problem = Problem.model_validate_json(answer.body)
        if problem.status != answer.status or not problem.detail:
            return f"status {answer.status} with the problem {problem}"
    return None


def _requests(
    document: dict[str, Any], item_ids: Sequence[str], num_requests: int, rng: random.Random
) -> Iterator[requests.PreparedRequest]:
    """Make valid and invalid requests for all routes in turn, in rounds: some routes allow only a few different ones."""
    import schemathesis
    from schemathesis.core.result import Ok

    schemathesis.serializer("application/x-ndjson")(_json_lines)
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    kinds = [(operation, mode) for operation in operations for mode in schemathesis.GenerationMode]
    left = num_requests
    while left:
        for operation, mode in kinds:
            made = _requests_of(operation, mode, left // len(kinds) + 1, item_ids, rng)[:left]
            left -= len(made)
            yield from made


def _json_lines(context: Any, value: Any) -> bytes:
    """Write the lines of a bulk; what is no list of lines becomes one."""
    return "\n".join(json.dumps(line) for line in (value if isinstance(value, list) else [value])).encode()


def _requests_of(
    operation: Any, mode: Any, count: int, item_ids: Sequence[str], rng: random.Random
) -> list[requests.PreparedRequest]:
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable

    made: list[requests.PreparedRequest] = []

    @seed(rng.getrandbits(32))
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        put_known = rng.random() < 0.5
        if put_known and "item_id" in (case.path_parameters or {}):
            case.path_parameters["item_id"] = rng.choice(item_ids)
        arguments = case.as_transport_kwargs(base_url="http://127.0.0.1")
        if put_known and "json" in arguments:
            arguments["json"] = _with_known(arguments["json"], item_ids, rng)
        try:
            made.append(requests.Request(**arguments).prepare())
        except (UnicodeError, ValueError):  # what no client could send
            return

    with contextlib.suppress(Unsatisfiable):  # a route without parameters cannot be asked in a wrong way
        collect()
    return made


def _with_known(value: Any, item_ids: Sequence[str], rng: random.Random) -> Any:
    """Put in real ids wherever items are named, and a valid number of items to list."""
    if isinstance(value, list):
        return [_with_known(part, item_ids, rng) for part in value]
    if not isinstance(value, dict):
        return value
    known = {name: _with_known(part, item_ids, rng) for name, part in value.items()}
    if "history" in known or "seeds" in known or not known:
        known["history"] = rng.choices(item_ids, k=rng.randint(1, 12))
        known.pop("user_id", None)
        known.pop("beam_width", None)
        known["k"] = rng.randint(1, 10)
    return known


def ask_in_process(run_dir: str, state_dir: str, beam_width: int = 50) -> tuple[dict[str, Any], Send, list[str]]:
    """Start the application of one replica in this process, without Ray."""
    from serve.keys import make_key, written
    from serve.middleware.callers import KeyRing
    from serve.routes import build_api
    from serve.service import Service
    from serve.settings import AppArguments

    key, record = make_key("fuzz", "admin")
    keys_file = Path(state_dir) / "keys.toml"
    keys_file.write_text(written(record.model_copy(update={"requests_per_second": 1e9, "burst": 10**9})))
    service = Service(AppArguments(run_dir=run_dir, state_dir=state_dir, beam_width=beam_width).resolved())
    asyncio.run(service.configure(service.arguments.live()))
    api = build_api(service, KeyRing(str(keys_file)))

    def send(request: requests.PreparedRequest, hostile: Headers) -> Answer:
        own = {name.lower().encode(): _raw(value) for name, value in request.headers.items() if name.lower() != "content-length"}
        own |= {b"host": b"127.0.0.1", b"authorization": f"Bearer {key}".encode()}
        return asyncio.run(_ask(api, request, _replaced(own, hostile)))

    _, run = service.version(None)
    return api.openapi(), send, run.trie.item_ids.to_pylist()


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else b""


def _replaced(own: dict[bytes, bytes], hostile: Headers) -> Headers:
    names = {name for name, _ in hostile}
    return [(name, value) for name, value in own.items() if name not in names] + hostile


async def _ask(api: Any, request: requests.PreparedRequest, headers: Headers) -> Answer:
    """Send a request as an HTTP server would, with headers that no HTTP client sends."""
    url = urlsplit(request.url or "/")
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"method": request.method, "path": unquote(url.path), "raw_path": url.path.encode(), "headers": headers}
    scope |= {"query_string": url.query.encode(), "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 80)}
    whole = _bytes(request.body)
    sent = list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": whole, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    try:
        await api(scope, receive, send)
    except Exception:
        if not sent:  # else it was answered as the server's failure, which the status tells
            raise
    kinds = [value for name, value in sent[0]["headers"] if name == b"content-type"]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], kinds[0].decode("latin-1") if kinds else "", content)


def ask_over_http(url: str) -> tuple[dict[str, Any], Send, list[str]]:
    """Ask a running server; an API key is taken from DIGR_API_KEY."""
    session = requests.Session()
    if key := os.environ.get("DIGR_API_KEY"):
        session.headers["Authorization"] = f"Bearer {key}"
    address = urlsplit(url)

    def send(request: requests.PreparedRequest, hostile: Headers) -> Answer:
        framing = (b"content-length", b"transfer-encoding")  # a wrong length makes the server wait for the rest
        own = {name.lower().encode(): _raw(value) for name, value in {**request.headers, **session.headers}.items()}
        headers = _replaced({b"host": address.netloc.encode()} | own, [one for one in hostile if one[0] not in framing])
        connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=60)
        asked = (request.url or "").removeprefix("http://127.0.0.1") or "/"
        connection.putrequest(request.method or "GET", asked, skip_host=True, skip_accept_encoding=True)
        try:
            for name, value in headers:
                connection.putheader(name.decode(), value)
        except ValueError:  # a line break, which would begin another header
            return Answer(400, "", SERVER_REFUSAL)
        connection.endheaders(_bytes(request.body))
        reply = connection.getresponse()
        return Answer(reply.status, reply.headers.get("content-type", ""), reply.read())

    items = session.get(f"{url.rstrip('/')}/v1/items?limit=50", timeout=60).json()["items"]
    return session.get(f"{url.rstrip('/')}/openapi.json", timeout=60).json(), send, [item["item_id"] for item in items]


def measure(quick: bool) -> Measurement:
    """Count the requests that got a 5xx, or an error that is not a problem document."""
    url, run_dir = os.environ.get("DIGR_URL"), os.environ.get("DIGR_RUN", "runs/quickstart")
    with tempfile.TemporaryDirectory() as state_dir:
        document, send, item_ids = ask_over_http(url) if url else ask_in_process(run_dir, state_dir)
        found = fuzz(document, send, item_ids, NUM_QUICK if quick else NUM_REQUESTS)
    figures = {
        "num_requests": sum(found.statuses.values()),
        "num_failures": len(found.failures),
        "failures": found.failures[:10],
        "statuses": {str(status): count for status, count in sorted(found.statuses.items())},
        "over": "http" if url else "asgi",
    }
    return Measurement(figures, ratio=float(len(found.failures)))


if __name__ == "__main__":
    main(measure, BAR)
