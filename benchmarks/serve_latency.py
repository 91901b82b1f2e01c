"""What HTTP and Ray Serve add to decoding, and whether the endpoint lists what the batch job lists.

Serves the finished run that the environment variable DIGR_RUN names (its policy after GRPO, if it has one). Requests go out one
at a time. Each is timed beside the same prompt decoded in this process and an empty route (`GET /healthz`), so all three meet the
same load. The ratio is the median of a request over the sum of the medians of the decoder and the empty route. The lists of 1,000
users are compared with those that `jobs.recommend` wrote. The claim needs all of them to be equal, up to the order of items whose
log-probabilities differ by less than 1e-4.
"""

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
import httpx
import numpy as np
import pyarrow as pa
import torch

from benchmarks.decoder_vs_transformers import equal_but_for_ties
from benchmarks.harness import Bar, Measurement, main
from benchmarks.serving import Served, bodies_of, finished_run, serving, test_histories, versions
from digr import artifacts
from digr.artifacts import Store
from digr.policy.decoding.search import recommend
from digr.policy.model import load_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import load_trie
from serve.settings import AppArguments

BAR = Bar(full=1.5, quick=2.0, quick_reason="medians of twenty requests, which a few slow ones move")
K = 10
CONCURRENCY = 16
RANKED = "ranked"
"""Version of the same policy with the run's ranker, where it has one."""


def measure(quick: bool) -> Measurement:
    """Compare lists, then times; the quick form takes 50 users and 30 requests."""
    store, rng = finished_run(), np.random.default_rng(0)
    name, version = next(iter(versions(store).items()))
    histories = test_histories(store, 50 if quick else 1000, rng)
    width = artifacts.require(store, f"recommendations/{name}_test").config["decoding"]["beam_width"]
    models = {name: version}
    if artifacts.read_manifest(store, "ranker"):
        models[RANKED] = version.model_copy(update={"ranker": "on"})
    with serving(AppArguments(models=models, default_model=name, beam_width=width)) as served:
        figures = compare_lists(store, name, served, histories)
        figures |= compare_times(store, name, width, served, histories.slice(0, 30 if quick else 300), is_ranked=RANKED in models)
    figures |= {"policy": name, "beam_width": width, "k": K}
    both = figures["decoder_p50_ms"] + figures["empty_route_p50_ms"]
    if figures["equal_lists"] + figures["equal_but_for_ties"] < figures["users"]:
        raise AssertionError(f"served lists differ from the batch job's: {figures}")
    return Measurement(figures, ratio=figures["request_p50_ms"] / both)


def compare_lists(store: Store, name: str, served: Served, histories: pa.Table) -> dict[str, Any]:
    """Count the served lists that equal the batch job's."""
    rows = artifacts.read_table(store, f"recommendations/{name}_test", ["example_id", "item_ids", "scores"])
    batch = rows.take(pa.compute.index_in(histories["example_id"], value_set=rows["example_id"]))
    replies = asyncio.run(_ask_all(served.url, bodies_of(histories, k=K, explain=False)))
    equal = tied = 0
    largest = 0.0
    for reply, items, scores in zip(replies, batch["item_ids"].to_pylist(), batch["scores"].to_pylist(), strict=True):
        mine, own = [item["item_id"] for item in reply["items"]], [item["score"] for item in reply["items"]]
        largest = max(largest, float(np.abs(np.subtract(own, scores[:K])).max()))
        equal += mine == items[:K]
        tied += mine != items[:K] and equal_but_for_ties(mine, items, scores)
    return {
        "users": len(histories),
        "equal_lists": equal,
        "equal_but_for_ties": tied,
        "largest_score_difference": float(f"{largest:.2g}"),
    }


async def _ask_all(url: str, bodies: list[bytes]) -> list[dict[str, Any]]:
    """Ask for all lists, several at a time, so that they are decoded in batches."""
    gate = asyncio.Semaphore(CONCURRENCY)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:

        async def ask(body: bytes) -> dict[str, Any]:
            async with gate, session.post(f"{url}/v1/recommend", data=body) as response:
                return json.loads(await response.read())

        return await asyncio.gather(*(ask(body) for body in bodies))


def compare_times(
    store: Store, name: str, width: int, served: Served, histories: pa.Table, *, is_ranked: bool
) -> dict[str, float]:
    """Time the decoder, the empty route and the whole request for each history, in random order; p50 and p95, ms.

    Args:
        is_ranked: whether the version `RANKED` is served too, and timed.
    """
    rng = np.random.default_rng(0)
    torch.set_num_threads(1)  # as many as Ray gives a replica of one CPU
    trie = load_trie(store)
    texts = sid_texts(trie.codes.numpy())
    places = {item: place for place, item in enumerate(trie.item_ids.to_pylist())}
    newest = artifacts.require(store, "histories").config["data"]["max_history"]
    with artifacts.local_files(store, f"policy_{name}") as folder:
        policy = load_policy(folder)
    known = [[places[item] for item in items if item in places][-newest:] for items in histories["history"].to_pylist()]
    prompts = [history_prompt([texts[place] for place in row]) for row in known]
    times: dict[str, list[float]] = {"decoder": [], "empty_route": [], "request": []}
    times |= {"ranked_request": []} if is_ranked else {}
    with httpx.Client(timeout=30, headers={"Content-Type": "application/json"}) as client:
        for number, (prompt, body) in enumerate(zip(prompts, bodies_of(histories, k=K), strict=True)):
            work: dict[str, Callable[[], Any]] = {
                "decoder": partial(recommend, policy, trie, [prompt], width, width),
                "empty_route": partial(client.get, f"{served.url}/healthz"),
                "request": partial(client.post, f"{served.url}/v1/recommend", content=body),
            }
            if is_ranked:
                ranked = json.dumps(json.loads(body) | {"model": RANKED})
                work["ranked_request"] = partial(client.post, f"{served.url}/v1/recommend", content=ranked)
            for part in rng.permutation(list(work)).tolist():  # each comes after each of the others
                start = time.perf_counter()
                found = work[part]()
                if number >= 10:  # the first ones warm up
                    times[part].append(1000 * (time.perf_counter() - start))
                assert part == "decoder" or found.status_code == 200, found.text
    figures = {f"{part}_p50_ms": round(float(np.median(values)), 2) for part, values in times.items()}
    return figures | {f"{part}_p95_ms": round(float(np.percentile(values, 95)), 2) for part, values in times.items()}


if __name__ == "__main__":
    main(measure, BAR)
