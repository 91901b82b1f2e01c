"""How the serving benchmarks compare lists and count successes."""

import asyncio

import pytest
from fastapi import FastAPI, Request, Response

from benchmarks.decoder_vs_transformers import equal_but_for_ties
from benchmarks.serving import closed_loop, finished_run
from tests.serve.http_server import serve_over_http

ITEMS, SCORES = ["a", "b", "c", "d"], [-1.0, -2.0, -2.00005, -3.0]


def test_lists_are_equal_but_for_ties_only_where_items_of_like_score_changed_places():
    assert equal_but_for_ties(["a", "c", "b"], ITEMS, SCORES)
    assert not equal_but_for_ties(["b", "a", "c"], ITEMS, SCORES)
    assert not equal_but_for_ties(["a", "b", "d"], ITEMS, SCORES)
    assert not equal_but_for_ties(["a", "b", "ghost"], ITEMS, SCORES)


def test_a_closed_loop_keeps_as_many_requests_under_way_as_it_is_told_and_sends_each_once():
    api, under_way, most, seen, first = FastAPI(), 0, 0, [], asyncio.Barrier(4)

    @api.post("/")
    async def answer(request: Request) -> Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        body = await request.body()
        seen.append(body)
        if len(seen) <= 4:
            await first.wait()
        under_way -= 1
        return Response(status_code=429 if body == b"busy" else 200)

    with serve_over_http(api) as url:
        found = asyncio.run(closed_loop(url, [b"good", b"busy", b"good"], 4, requests=30))
    assert found.statuses == {200: 20, 429: 10} and most == 4
    assert sorted(seen) == [b"busy"] * 10 + [b"good"] * 20
    assert found.ok_rate == pytest.approx(20 / found.seconds)


def test_without_a_run_the_benchmarks_say_what_to_set(monkeypatch):
    monkeypatch.delenv("DIGR_RUN", raising=False)
    with pytest.raises(ValueError, match="set DIGR_RUN to the folder of a finished run"):
        finished_run()
