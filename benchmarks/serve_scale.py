"""A catalogue of a million items and fifty million interactions, served by two replicas of one machine.

The run is generated: random codes and titles, a small policy of random weights, no ranker. The encoder of new items costs
nothing. Every figure comes from a process of its own that holds a replica's service, without Ray and HTTP. Memory is the share
of the machine (PSS) of two such processes after the same requests, less that of two with a catalogue of a hundredth.
The ratio is the largest share that a figure takes of its limit.
"""

import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts, partitions
from digr.artifacts import Manifest, Store
from digr.config.interests import EmbeddingsConfig
from digr.config.policy import PolicyConfig
from digr.partitions import Part
from digr.policy.model import build_scratch_policy
from digr.sids.fitting import save_quantiser
from digr.sids.rkmeans import RKMeans
from digr.tables import conform, nest_interests

BAR = Bar(full=1.0, quick=1.0, quick_reason="a fiftieth of the items: memory of the parts that do not grow weighs more")
"""Of the largest share of its limit that a figure takes."""
LIMITS = {
    "bytes_per_item": 1000.0,
    "warm_start_seconds": 15.0,
    "add_cpu_ms": 50.0,
    "add_visible_seconds": 1.0,
    "search_p99_ms": 20.0,
    "swap_p99_over_median": 3.0,
    "swap_growth_bytes_per_item": 20.0,
}
SIZES, SIZES_QUICK = (1_000_000, 50), (20_000, 20)
"""Items, and interactions for each."""
PER_USER, USERS_PER_PART, PHRASES, PER_ITEM, HISTORY = 25, 16_384, 20_000, 4, 20
LEVELS, DIM = [256, 256, 64], 32
SEARCHES, ADDED, SWAPS = 400, 50, 100
SPAWN = multiprocessing.get_context("spawn")


def write_run(root: str, num_items: int, per_item: int) -> Store:
    """Write what the endpoint reads of a run."""
    store, rng = Store(root), np.random.default_rng(0)
    ids = pa.array(np.char.zfill(np.arange(num_items).astype(str), 9))
    words, phrases = _words(rng, 50_000), _titles(_words(rng, 5000), rng, PHRASES, 3)
    items = pa.table(
        {
            "item_id": ids,
            "title": _titles(words, rng, num_items, 7),
            "description": _titles(words, rng, num_items, 20),
            "categories": _lists(rng.integers(0, 2000, 2 * num_items), np.full(num_items, 2), "c"),
            "price": rng.uniform(1, 100, num_items).round(2),
            "currency": pa.array(["EUR"]).take(pa.array(np.zeros(num_items, np.int64))),
        }
    )
    _put(store, "items", items)
    numbers = rng.choice(int(np.prod(LEVELS)), num_items, replace=False)
    codes = np.stack(np.unravel_index(numbers, LEVELS), 1).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(num_items + 1) * 3, pa.int32()), pa.array(codes.ravel()))
    facts, config = {"level_sizes": LEVELS, "usage_rate": [1.0] * 3}, {"sids": {"disambiguation": "colliding"}}
    _put(store, "item_sids", pa.table({"item_id": ids, "codes": lists}), facts=facts, config=config)
    _write_interests(store, ids, phrases, rng)
    _write_users(store, ids, per_item, rng)
    _write_models(store, rng)
    return store


def _put(store: Store, name: str, table: pa.Table, **manifest: Any) -> None:
    rows = artifacts.write_table(store, name, conform(name, table, "benchmark"))
    artifacts.commit(store, Manifest(name=name, rows=rows, **manifest))


def _words(rng: np.random.Generator, count: int) -> pa.Array:
    letters = rng.choice(np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", "S1"), (count, 8), p=_zipf(26, 0.7))
    return pa.array(sorted({b"".join(row[: 2 + number % 7]).decode() for number, row in enumerate(letters)}))


def _zipf(count: int, power: float) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1) ** power
    return weights / weights.sum()


def _titles(words: pa.Array, rng: np.random.Generator, count: int, length: int) -> pa.Array:
    """Join random words, the frequent ones often."""
    order = rng.permutation(len(words))[rng.choice(len(words), count * length, p=_zipf(len(words), 1.0))]
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * length, pa.int32()), words.take(pa.array(order)))
    return pa.compute.binary_join(lists, " ")


def _lists(values: np.ndarray, lengths: np.ndarray, prefix: str) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.char.add(prefix, values.astype(str))))


def _write_interests(store: Store, ids: pa.Array, phrases: pa.Array, rng: np.random.Generator) -> None:
    phrases = phrases.unique().sort()
    group = np.arange(len(phrases)) // 4
    names = phrases.take(pa.array(group * 4))
    one = pa.array(np.arange(len(phrases) + 1), pa.int32())
    table = {"interest": phrases, "num_items": np.full(len(phrases), 1), "groups": pa.ListArray.from_arrays(one, pa.array(group))}
    _put(store, "canonical_interests", pa.table(table | {"names": pa.ListArray.from_arrays(one, names)}))
    number = PER_ITEM * len(ids)
    one = pa.array(np.arange(number + 1), pa.int32())
    fields = {
        "interest": phrases.take(pa.array(rng.choice(len(phrases), number, p=_zipf(len(phrases), 0.5)))),
        "probability": rng.random(number),
        "label": np.ones(number, np.int8),
        "labelers": pa.ListArray.from_arrays(one, pa.array(["classifier"]).take(pa.array(np.zeros(number, np.int64)))),
    }
    owners = {"owner": ["item"] * len(ids), "owner_id": ids, "quality": np.ones(len(ids))}
    _put(store, "interest_labels", nest_interests("interest_labels", owners, np.repeat(np.arange(len(ids)), PER_ITEM), fields))


def _write_users(store: Store, ids: pa.Array, per_item: int, rng: np.random.Generator) -> None:
    """Write interactions and histories, part by part; the last item of each user is held out."""
    num_users = len(ids) * per_item // PER_USER
    starts = [f"{number:09d}" if number else "" for number in range(0, num_users, USERS_PER_PART)]
    for name in ("interactions", "histories"):
        artifacts.begin(store, name)
    for number in range(len(starts)):
        first, count = number * USERS_PER_PART, min(USERS_PER_PART, num_users - number * USERS_PER_PART)
        users = pa.array(np.char.zfill(np.arange(first, first + count).astype(str), 9))
        walk = (len(ids) * rng.random((count, PER_USER)) ** 3).astype(np.int64)
        flat = ids.take(pa.array(walk.ravel()))
        rows = {"user_id": users.take(pa.array(np.repeat(np.arange(count), PER_USER))), "item_id": flat}
        rows["position"] = pa.array(np.tile(np.arange(PER_USER, dtype=np.int32), count))
        past = ids.take(pa.array(walk[:, :-2].ravel()))
        history = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * (PER_USER - 2), pa.int32()), past)
        train = {"example_id": users, "user_id": users, "split": pa.array(["train"]).take(pa.array(np.zeros(count, np.int64)))}
        train |= {"history": history, "target": ids.take(pa.array(walk[:, -2])), "target_timestamp": pa.nulls(count)}
        for name, columns in (("interactions", rows), ("histories", train)):
            table = conform(name, pa.table(columns), "benchmark")
            with artifacts.open_part(partitions.part_uri(store, name, Part("user", number)), table.schema) as writer:
                writer.write_table(table)
    facts = {partitions.STARTS: starts}
    artifacts.commit(store, Manifest(name="interactions", rows=num_users * PER_USER, facts=facts))
    config = {"data": {"max_history": HISTORY}}
    artifacts.commit(store, Manifest(name="histories", rows=num_users, facts=facts, config=config))


def _write_models(store: Store, rng: np.random.Generator) -> None:
    """Write a quantiser and a policy of random weights."""
    empty = pa.table({"item_id": ["0"], "embedding": pa.array([[0.0] * DIM], pa.list_(pa.float32()))})
    _put(store, "item_embeddings", empty, config={"embeddings": EmbeddingsConfig().model_dump(mode="json")})
    books = tuple(torch.from_numpy(rng.normal(size=(size, DIM)).astype(np.float32)) for size in LEVELS)
    with tempfile.TemporaryDirectory() as folder:
        save_quantiser(RKMeans(torch.zeros(DIM), torch.ones(DIM), books), Path(folder))
        artifacts.put_files(store, "quantiser", Path(folder))
    artifacts.commit(store, Manifest(name="quantiser"))
    chosen = PolicyConfig(hidden_dim=64, num_layers=2, num_heads=2, max_tokens=128)
    for seed, name in enumerate(("policy_sft", "policy_grpo")):
        artifacts.begin(store, name)
        build_scratch_policy(chosen, LEVELS, seed=seed).save(store.uri(name))
        trained_on = {"item_sids": artifacts.require(store, "item_sids").digest}
        artifacts.commit(store, Manifest(name=name, seed=seed, inputs=trained_on))


def start(root: str, cache: str, state: str = "", policy: str = "policy_sft") -> Any:
    """Start what a replica runs."""
    os.environ["XDG_CACHE_HOME"] = cache
    torch.set_num_threads(1)
    import serve.service as service_module
    from serve.settings import AppArguments, VersionSettings

    def free(_: object) -> Callable[[list[str]], np.ndarray]:
        return lambda texts: np.random.default_rng(len(texts[0])).normal(size=(len(texts), DIM)).astype(np.float32)

    service_module.get_encoder = free  # type: ignore[assignment]  # its cost is that of the encoder, not of the catalogue
    models = {"main": VersionSettings(run_dir=root, policy=policy)}
    arguments = AppArguments(models=models, state_dir=state, max_pending=1).resolved()
    service = service_module.Service(arguments)
    asyncio.run(service.configure(arguments.live()))
    return service


def requests(service: Any, count: int) -> list[float]:
    """Search, open the tree and ask for lists of users, some of them filtered; return the seconds of each search."""
    from serve.contract.schemas import RecommendRequest
    from serve.items.browsing import search, show_level
    from serve.lists.recommending import answer_request

    _, run = service.version(None)
    rng, seconds = np.random.default_rng(0), []
    titles = run.facts.table.take(rng.integers(0, run.trie.num_items, count), ["title"])["title"].to_pylist()
    for number, title in enumerate(titles):
        words = title.split()
        kinds = words[0][:1], words[0][:2], words[0], " ".join(words[:2]), f"{words[3]} {words[1][:3]}", title
        query = kinds[number % len(kinds)]
        begun = time.perf_counter()
        search(run, query, 20)
        seconds.append(time.perf_counter() - begun)
    show_level(run, "")
    for number in range(count // 10):
        allow = {"categories": [f"c{code}" for code in range(number, number + 200)], "max_price": 80} if number % 2 else None
        body = {"user_id": f"{int(rng.integers(0, len(run.users.users))):09d}", "k": 10, "allow": allow}
        asyncio.run(answer_request(service, RecommendRequest.model_validate(body)))
    return seconds


def hold(root: str, cache: str, pipe: Any) -> None:
    """Be a replica: start, answer, tell what was measured, and hold on until told to end."""
    begun = time.monotonic()
    service = start(root, cache)
    started, cpu = time.monotonic() - begun, time.process_time()
    seconds = requests(service, SEARCHES)
    pipe.send({"start": started, "cpu": cpu, "search": np.percentile(seconds, [50, 99]).tolist(), "longest": max(seconds)})
    pipe.recv()


def replicas(root: str, cache: str) -> tuple[dict[str, Any], float]:
    """Start two replicas; return what the first tells, and the bytes of the machine that both take."""
    pipes, processes, told = [], [], []
    for _ in range(2):
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=hold, args=(root, cache, theirs))
        process.start()
        theirs.close()  # so that the end of the process ends the wait for it
        told.append(ours.recv())
        pipes.append(ours)
        processes.append(process)
    size = sum(psutil.Process(process.pid).memory_full_info().pss for process in processes)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return told[-1], float(size)


def apart(task: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Run a task in a process of its own."""
    with SPAWN.Pool(1) as pool:
        return pool.apply(task, args)


def adding(root: str, cache: str, state: str) -> dict[str, Any]:
    """Add items one by one; look at them in another replica that follows."""
    from serve.items.browsing import search
    from serve.items.changing import ItemRequest, change_catalogue

    one, two = start(root, cache, state), start(root, cache, state)
    cpu, seen = [], []
    for number in range(ADDED):
        fields = {"title": f"Novelty {number} lamp", "categories": ["c1"], "price": 9.0, "currency": "EUR", "interests": []}
        begun, before = time.perf_counter(), time.process_time()
        asyncio.run(change_catalogue(one, [ItemRequest("add", f"new{number}", fields)]))
        cpu.append(time.process_time() - before)
        asyncio.run(two.follow())
        (found,) = search(two.version(None)[1], f"novelty {number} lamp", 1).items
        assert found.item_id == f"new{number}"
        seen.append(time.perf_counter() - begun + two.arguments.follow_seconds)
    return {"add_cpu_ms": 1000 * statistics.median(cpu), "add_first_cpu_ms": 1000 * cpu[0], "add_visible_seconds": max(seen)}


def swapping(root: str, cache: str, swaps: int) -> dict[str, Any]:
    """Swap the policy again and again while requests come; return latencies with and without, and the growth of memory."""
    from serve.contract.schemas import RecommendRequest
    from serve.lists.recommending import answer_request
    from serve.settings import LiveSettings, VersionSettings

    service, process = start(root, cache), psutil.Process()
    request, quiet, busy, sizes = RecommendRequest(user_id="000000001", k=10), list[float](), list[float](), list[int]()

    async def ask(into: list[float]) -> None:
        begun = time.perf_counter()
        await answer_request(service, request)
        into.append(time.perf_counter() - begun)
        await asyncio.sleep(0.01)

    async def run() -> None:
        for _ in range(200):
            await ask(quiet)
        for number in range(swaps):
            version = VersionSettings(run_dir=root, policy="policy_grpo" if number % 2 else "policy_sft")
            swap = asyncio.create_task(service.configure(LiveSettings(models={"main": version})))
            while not swap.done():
                await ask(busy)
            await swap
            sizes.append(process.memory_full_info().uss)

    asyncio.run(run())
    median, p99 = float(np.median(quiet)), float(np.percentile(busy, 99))
    fifth = max(1, swaps // 5)
    growth = statistics.median(sizes[-fifth:]) - statistics.median(sizes[fifth : 2 * fifth])
    return {"request_ms": 1000 * median, "swap_p99_ms": 1000 * p99, "swap_longest_ms": 1000 * max(busy), "growth": growth}


def measure(quick: bool) -> Measurement:
    """Generate the run, build it once, and measure what replicas do with it."""
    num_items, per_item = SIZES_QUICK if quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        root, cache, figures = f"{folder}/run", f"{folder}/cache", dict[str, Any]()
        begun = time.monotonic()
        write_run(root, num_items, per_item)
        write_run(f"{folder}/small", num_items // 100, per_item)
        figures |= {"items": num_items, "interactions": num_items * per_item, "generate_seconds": time.monotonic() - begun}
        cold = apart(_starting, root, cache)
        files = sum(path.stat().st_blocks * 512 for path in Path(cache).rglob("*"))
        warm, size = replicas(root, cache)
        apart(_starting, f"{folder}/small", cache)
        _, nothing = replicas(f"{folder}/small", cache)
        added = apart(adding, root, cache, f"{folder}/state")
        swapped = apart(swapping, root, cache, SWAPS // 5 if quick else SWAPS)
        shutil.rmtree(root)
    figures |= {
        "cold_start_seconds": cold["start"],
        "cold_start_parent_cpu_seconds": cold["cpu"],
        "file_bytes_per_item": files / num_items,
        "warm_start_seconds": warm["start"],
        "warm_start_cpu_seconds": warm["cpu"],
        "bytes_per_item": (size - nothing) / num_items,
        "search_median_ms": 1000 * warm["search"][0],
        "search_p99_ms": 1000 * warm["search"][1],
        "search_longest_ms": 1000 * warm["longest"],
        **added,
        **swapped,
        "swap_p99_over_median": swapped["swap_p99_ms"] / swapped["request_ms"],
        "swap_growth_bytes_per_item": max(0.0, swapped["growth"]) / num_items,
    }
    shares = {name: figures[name] / limit for name, limit in LIMITS.items()}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    rounded |= {"limits": json.dumps(LIMITS), "largest_share": max(shares, key=lambda name: shares[name])}
    return Measurement(rounded, ratio=max(shares.values()))


def _starting(root: str, cache: str) -> dict[str, Any]:
    begun = time.monotonic()
    start(root, cache)
    return {"start": time.monotonic() - begun, "cpu": time.process_time()}


if __name__ == "__main__":
    main(measure, BAR)
