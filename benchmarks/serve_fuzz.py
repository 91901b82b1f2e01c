"""Ten thousand valid and invalid requests made from the endpoint's own OpenAPI document: none may get a 5xx.

`DIGR_RUN=<folder of a run> python -m benchmarks.serve_fuzz` asks the application in this process; with DIGR_URL it asks a running
server. Half of the requests name real items, so that they reach the decoder. Every error must be a problem document that
names its cause.
"""

import asyncio
import contextlib
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import requests

from benchmarks.harness import Bar, Measurement, main

BAR = Bar(full=0, quick=0, quick_reason="a count of failures, none of which is allowed at any size")
NUM_REQUESTS, NUM_QUICK = 10_000, 400


class Answer(NamedTuple):
    """What came back."""

    status: int
    content_type: str
    body: bytes


Send = Callable[[requests.PreparedRequest], Answer]


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
    for prepared in _requests(document, item_ids, num_requests, random.Random(seed)):
        answer = send(prepared)
        found.statuses[answer.status] += 1
        if wrong := _wrong(answer):
            found.failures.append(f"{prepared.method} {prepared.url} {prepared.body!r:.500}: {wrong}")
    return found


def _wrong(answer: Answer) -> str | None:
    from serve.schemas import Problem

    if answer.status >= 500:
        return f"status {answer.status}"
    if answer.status >= 400:
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

    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    kinds = [(operation, mode) for operation in operations for mode in schemathesis.GenerationMode]
    left = num_requests
    while left:
        for operation, mode in kinds:
            made = _requests_of(operation, mode, left // len(kinds) + 1, item_ids, rng)[:left]
            left -= len(made)
            yield from made


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
    from fastapi.testclient import TestClient

    from serve.callers import KeyRing
    from serve.keys import make_key, written
    from serve.routes import build_api
    from serve.service import Service
    from serve.settings import AppArguments

    key, record = make_key("fuzz", "admin")
    keys_file = Path(state_dir) / "keys.toml"
    keys_file.write_text(written(record.model_copy(update={"requests_per_second": 1e9})))
    service = Service(AppArguments(run_dir=run_dir, state_dir=state_dir, beam_width=beam_width).resolved())
    asyncio.run(service.configure(service.arguments.live()))
    client = TestClient(build_api(service, KeyRing(str(keys_file))), base_url="http://127.0.0.1", raise_server_exceptions=False)

    def send(request: requests.PreparedRequest) -> Answer:
        kept = {name: str(value) for name, value in request.headers.items() if name.lower() != "content-length"}
        headers = kept | {"Authorization": f"Bearer {key}"}
        body = request.body if isinstance(request.body, str | bytes) else None
        reply = client.request(request.method or "GET", request.url or "/", headers=headers, content=body)
        return Answer(reply.status_code, reply.headers.get("content-type", ""), reply.content)

    _, run = service.version(None)
    return client.get("/openapi.json").json(), send, run.trie.item_ids.to_pylist()


def ask_over_http(url: str) -> tuple[dict[str, Any], Send, list[str]]:
    """Ask a running server; an API key is taken from DIGR_API_KEY."""
    session = requests.Session()
    if key := os.environ.get("DIGR_API_KEY"):
        session.headers["Authorization"] = f"Bearer {key}"

    def send(request: requests.PreparedRequest) -> Answer:
        request.url = (request.url or "").replace("http://127.0.0.1", url.rstrip("/"), 1)
        request.headers.update(session.headers)
        reply = session.send(request, timeout=60)
        return Answer(reply.status_code, reply.headers.get("content-type", ""), reply.content)

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
