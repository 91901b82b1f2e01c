"""The server answers every request, valid or not, and never with a 5xx."""

import random
from collections import Counter

import requests

from benchmarks.serve_fuzz import ask_in_process, fuzz, hostile_headers
from tests.serve.tiny_run import BEAM_WIDTH

ASKED = [
    ("GET", "/", None),
    ("GET", "/docs", None),
    ("GET", "/healthz", None),
    ("GET", "/nowhere", None),
    ("GET", "/v1/models/", None),
    ("DELETE", "/v1/models", None),
    ("GET", "/v1/items/item01", None),
    ("POST", "/v1/items", {"item_id": "item01", "title": "Title item01"}),
    ("POST", "/v1/recommend", {"history": ["item01"], "k": 1}),
]


def test_no_request_made_from_the_openapi_document_gets_a_5xx(tiny_run, tmp_path):
    """A small form of benchmarks/serve_fuzz.py."""
    document, send, item_ids = ask_in_process(tiny_run.root, str(tmp_path), BEAM_WIDTH)
    found = fuzz(document, send, item_ids, 78)
    assert found.failures == []
    assert sum(found.statuses.values()) == 78
    assert {200, 400, 401, 422} <= set(found.statuses)


def test_no_headers_whatever_get_a_5xx(tiny_run, tmp_path):
    """Malformed `Host` and `Origin` got a 500."""
    _, send, _ = ask_in_process(tiny_run.root, str(tmp_path), BEAM_WIDTH)
    prepared = [requests.Request(method, f"http://127.0.0.1{path}", json=body).prepare() for method, path, body in ASKED]
    rng, statuses = random.Random(1), Counter[int]()
    for _ in range(1500):
        headers = hostile_headers(rng)
        answer = send(rng.choice(prepared), headers)
        statuses[answer.status] += 1
        assert answer.status < 500, headers
    assert {200, 400, 401, 404} <= set(statuses)
