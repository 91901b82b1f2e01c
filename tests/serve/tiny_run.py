"""A tiny run with a policy of random weights, and the endpoint over it without Ray."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.interests import EmbeddingsConfig
from digr.config.policy import PolicyConfig
from digr.policy.model import build_scratch_policy
from digr.sids.fitting import save_quantiser
from digr.sids.rkmeans import RKMeans
from serve.middleware.callers import KeyRing
from serve.replicas.board import Board
from serve.routes import build_api
from serve.service import Service
from serve.settings import AppArguments
from tests.nested_interests import nest_rows

NUM_ITEMS = 60
LEVEL_SIZES = [8, 8, 8]
MAX_HISTORY = 5
BEAM_WIDTH = 12


def put(store: Store, name: str, columns: dict | pa.Table, **manifest) -> None:
    """Write one artifact."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    artifacts.commit(store, Manifest(name=name, rows=artifacts.write_table(store, name, table), **manifest))


def _write_quantiser(store: Store) -> None:
    """Write random codebooks in the space of MiniLM."""
    rng = np.random.default_rng(4)
    vectors = {"item_id": ["item00"], "embedding": pa.array([rng.normal(size=384).tolist()], pa.list_(pa.float32()))}
    put(store, "item_embeddings", vectors, config={"embeddings": EmbeddingsConfig().model_dump(mode="json")})
    books = tuple(torch.from_numpy(rng.normal(size=(size, 384)).astype(np.float32)) * 0.05 for size in LEVEL_SIZES)
    quantiser = RKMeans(torch.zeros(384), torch.ones(384), books)
    with tempfile.TemporaryDirectory() as folder:
        save_quantiser(quantiser, Path(folder))
        artifacts.put_files(store, "quantiser", Path(folder))
    artifacts.commit(store, Manifest(name="quantiser"))


def write_run(
    root: str, seed: int = 3, policy: str = "policy_sft", max_tokens: int = 64, currencies: Sequence[str | None] = ("EUR",)
) -> Store:
    """Write what the endpoint reads of a run: 60 items, item i of category `c<i % 4>` at a price of i, every 7th without one.

    The items' currencies are the given ones in turn.
    """
    store = Store(root)
    ids = [f"item{index:02d}" for index in range(NUM_ITEMS)]
    numbers = np.random.default_rng(0).permutation(8**3)[:NUM_ITEMS]
    codes = np.stack([numbers // 64, numbers // 8 % 8, numbers % 8], axis=1).astype(np.int32)
    items = {
        "item_id": ids,
        "title": [f"Title {item}" for item in ids],
        "description": [None if index % 2 else f"About {item}" for index, item in enumerate(ids)],
        "categories": [["all", f"c{index % 4}"] for index in range(NUM_ITEMS)],
        "price": [None if index % 7 == 0 else float(index) for index in range(NUM_ITEMS)],
        "currency": [currencies[index % len(currencies)] for index in range(NUM_ITEMS)],
    }
    put(store, "items", items)
    sids = {"item_id": ids, "codes": pa.array(codes.tolist(), pa.list_(pa.int32()))}
    facts = {"level_sizes": LEVEL_SIZES, "usage_rate": [1.0, 1.0, 1.0]}
    put(store, "item_sids", sids, facts=facts, config={"sids": {"disambiguation": "colliding"}})
    _write_quantiser(store)
    # u1 read item10 to item16; in training item05 occurs three times, item06 twice, item07 once
    put(
        store,
        "interactions",
        {
            "user_id": ["u1"] * 7 + ["u2"],
            "position": pa.array([*range(7), 0], pa.int32()),
            "item_id": [f"item{index}" for index in range(10, 17)] + ["item05"],
        },
    )
    histories = {
        "example_id": ["a", "b", "c"],
        "user_id": ["u2", "u3", "u4"],
        "split": ["train", "train", "test"],
        "history": [["item05", "item06"], ["item05", "item06"], ["item20"]],
        "target": ["item05", "item07", "item21"],
    }
    put(store, "histories", histories, config={"data": {"max_history": MAX_HISTORY}})
    labels = [{"owner_id": item, "interest": f"interest {index % 3}"} for index, item in enumerate(ids)]
    put(store, "interest_labels", nest_rows("interest_labels", labels, ids))
    artifacts.begin(store, policy)
    chosen = PolicyConfig(hidden_dim=32, num_layers=2, num_heads=2, max_tokens=max_tokens)
    model = build_scratch_policy(chosen, LEVEL_SIZES, seed=seed)
    model.save(store.uri(policy))
    trained_on = {"item_sids": artifacts.require(store, "item_sids").digest}
    artifacts.commit(store, Manifest(name=policy, seed=seed, inputs=trained_on))
    return store


def write_canonical(store: Store) -> None:
    """Write canonical interests: `interest 0` is of `weekend hikes`, `interest 1` of itself, and `interest 2` of none."""
    rows = {"interest": ["interest 1", "interest 0", "weekend hikes"], "num_items": [20, 20, 0]}
    rows |= {"groups": [[1, 0], [0, 0], [0, 0]], "names": [["interest 1", "outdoors"], *[["weekend hikes", "outdoors"]] * 2]}
    put(store, "canonical_interests", rows)


def start_service(arguments: AppArguments, replica: str = "one", board: Board | None = None) -> Service:
    """Start what one replica runs, without Ray; with the longest deadline, which no test of answers should reach."""
    arguments = arguments.resolved().model_copy(update={"deadline_seconds": 600.0})
    service = Service(arguments, replica=replica, board=board)
    asyncio.run(service.configure(arguments.live()))
    return service


def serve_without_ray(
    arguments: AppArguments, replica: str = "one", peer: str = "127.0.0.1", board: Board | None = None
) -> TestClient:
    """Return a client of the endpoint in this process; it seems to ask from the address `peer`."""
    return client_of(start_service(arguments, replica, board), peer)


def client_of(service: Service, peer: str = "127.0.0.1", keys: KeyRing | None = None) -> TestClient:
    """Return a client of a service."""
    api = build_api(service, keys or KeyRing(service.arguments.keys_file))
    client = TestClient(_from(peer, api), base_url="http://127.0.0.1", raise_server_exceptions=False)
    client.service, client.service_api = service, api
    return client


def without_id(reply: dict) -> dict:
    """Return a reply without the id of its list, which is new each time."""
    return {name: value for name, value in reply.items() if name != "recommendation_id"}


def _from(peer: str, api: FastAPI) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope |= {"client": (peer, 50000), "server": ("127.0.0.1", 80)}
        await api(scope, receive, send)

    return app
