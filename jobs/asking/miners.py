"""How a miner of the config becomes a function from a Ray Dataset of requests to one of responses."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ExtractiveMiner, Miner, OpenAIMiner, ReplayMiner, VllmMiner
from digr.interests.prompts import SHOWN_INTERESTS, Owner, item_requests, prompt_modality, request_key, user_requests
from digr.interests.replay import open_recording, replay
from digr.tables import TABLES
from jobs.asking import llm_miners, phrase_tasks
from jobs.asking.ledger_tasks import map_tables
from jobs.asking.sink import Sink, write
from jobs.runtime.parts import read_parts

BLOCK_ROWS = 1024
"""Requests made, and answers written, at once by miners that do not wait for a model."""


def requests_of(config: Config, store: Store, owner: Owner, miner: Miner) -> Dataset:
    """Return the requests of one miner for all owners of a kind, in ascending order of their ids; nothing is read yet."""
    extra = artifacts.digest_of_files(miner.path) if isinstance(miner, ReplayMiner) else ""
    if isinstance(miner, ExtractiveMiner):
        extra = f"{config.interests.encoder} {config.interests.max_interests}"
    elif prompt_modality(owner, getattr(miner, "modality", "text")) != "text":
        extra = f"images up to {config.interests.max_image_side} pixels, {config.interests.max_image_bytes} bytes"
    key = request_key(owner, miner.model_dump(mode="json"), extra)
    chars = config.interests.max_text_chars
    if owner == "item":
        modality = getattr(miner, "modality", "text")
        blocks = read_parts(store.uri("items"))
        if not isinstance(miner, VllmMiner | OpenAIMiner):  # a model is slower than one worker for each part of the items
            blocks = blocks.repartition(target_num_rows_per_block=BLOCK_ROWS)
        return map_tables(blocks, item_requests, key=key, modality=modality, max_text_chars=chars)
    users = read_parts(store.uri("histories"), ["user_id"]).groupby("user_id").count()
    blocks = users.repartition(target_num_rows_per_block=BLOCK_ROWS)
    return map_tables(blocks, _user_batch, store=store, key=key, max_text_chars=chars)


def together(miners: Sequence[Miner]) -> list[list[Miner]]:
    """Return which miners run at once, in order: endpoints wait for others, so all of them; any other has the machine."""
    endpoints: list[Miner] = [miner for miner in miners if isinstance(miner, OpenAIMiner)]
    return [[miner] for miner in miners if miner not in endpoints] + ([endpoints] if endpoints else [])


def _user_batch(users: pa.Table, store: Store, key: str, max_text_chars: int) -> pa.Table:
    histories = artifacts.read_table(store, "histories", user_id=users["user_id"].to_pylist(), split=["train"])
    shown = {item for history in histories["history"].to_pylist() for item in history}
    items = artifacts.read_table(store, "items", ["item_id", "title"], item_id=shown)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    mined = artifacts.open_parts(f"{store.uri('interests')}/item", TABLES["interests"].schema)
    strongest = pc.field("owner_id").isin(list(shown)) & (pc.field("rank") < SHOWN_INTERESTS)
    interests: dict[str, list[str]] = {}
    for row in mined.to_table(columns=["owner_id", "rank", "interest"], filter=strongest).sort_by("rank").to_pylist():
        interests.setdefault(row["owner_id"], []).append(row["interest"])
    return user_requests(histories, titles, key, max_text_chars, interests)


def answer(
    config: Config, owner: Owner, miner: Miner, missing: Dataset, everything: Dataset, num_owners: int, sink: Sink
) -> Dataset:
    """Write a miner's responses to the requests that are missing, batch by batch; returns their counts.

    Args:
        everything: all requests of the miner, `num_owners` of them; key phrases are counted over all owners.
    """
    if isinstance(miner, VllmMiner | OpenAIMiner):
        return llm_miners.answer_with_model(config, owner, miner, missing, sink)
    if isinstance(miner, ReplayMiner):
        open_recording(miner.path)
        names = {"miner": miner.name, "recorded_miner": miner.recorded_miner}
        return map_tables(map_tables(missing, replay, path=miner.path, **names), write, sink=sink)
    return map_tables(phrase_tasks.extract(config, owner, miner, missing, everything, num_owners), write, sink=sink)
