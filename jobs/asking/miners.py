"""How a miner of the config becomes a function from a Ray Dataset of requests to one of responses."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ExtractiveMiner, Miner, OpenAIMiner, ReplayMiner, VllmMiner
from digr.config.models import ModelConfig
from digr.interests.item_lines import read_item_lines
from digr.interests.prompts import Owner, item_requests, prompt_modality, request_key, user_requests
from digr.interests.replay import open_recording, replay
from digr.models.loading import weights_digest
from digr.partitions import iter_users, parts_of
from jobs.asking import llm_miners, phrase_tasks
from jobs.asking.ledger_tasks import map_tables
from jobs.asking.sink import Sink, write
from jobs.runtime.datasets import READ_ROWS, part_dataset, parts_in, read_parts

BLOCK_ROWS = 1024
"""Requests made, and answers written, at once by miners that do not wait for a model."""


def item_lines_of(config: Config, store: Store) -> Any:
    """Return a reference to what users' requests show of all items, which a task reads once for all miners of a job."""
    task: Any = ray.remote(read_item_lines)
    return task.remote(store, config.interests.max_text_chars, with_interests="item" in config.interests.owners)


def what_else_decides(config: Config, owner: Owner, miner: Miner) -> str:
    """Return what decides an answer beside the miner's own section: a recording's content, weights, sizes of images."""
    chosen = config.interests
    decisive = [artifacts.digest_of_files(miner.path)] if isinstance(miner, ReplayMiner) else []
    if isinstance(miner, ExtractiveMiner):
        decisive = [chosen.encoder.model_dump_json(), weights_digest(chosen.encoder, "interests.encoder")]
        decisive.append(str(chosen.max_interests))
    if isinstance(miner, VllmMiner):
        decisive.append(weights_digest(ModelConfig(name=miner.model), f"interests.miners {miner.name}"))
    if prompt_modality(owner, getattr(miner, "modality", "text")) != "text":
        decisive.append(f"images up to {chosen.max_image_side} pixels, {chosen.max_image_bytes} bytes")
    return " ".join(decisive)


def requests_of(config: Config, store: Store, owner: Owner, miner: Miner, items: Any = None) -> Dataset:
    """Return the requests of one miner for all owners of a kind, in ascending order of their ids; nothing is read yet.

    Args:
        items: from `item_lines_of`, for users.
    """
    key = request_key(owner, miner.model_dump(mode="json"), what_else_decides(config, owner, miner))
    chars = config.interests.max_text_chars
    if owner == "item":
        modality = getattr(miner, "modality", "text")
        blocks = read_parts(store.uri("items"))
        if not isinstance(miner, VllmMiner | OpenAIMiner):  # a model is slower than one worker for each part of the items
            blocks = blocks.repartition(target_num_rows_per_block=BLOCK_ROWS)
        return map_tables(blocks, item_requests, key=key, modality=modality, max_text_chars=chars)
    assert items is not None, "a user's request shows items"
    users = map_tables(
        part_dataset(parts_of(store, "user")), _user_batch, store=store, items=items, key=key, max_text_chars=chars
    )
    return users.repartition(target_num_rows_per_block=BLOCK_ROWS)


def together(miners: Sequence[Miner]) -> list[list[Miner]]:
    """Return which miners run at once, in order: endpoints wait for others, so all of them; any other has the machine."""
    endpoints: list[Miner] = [miner for miner in miners if isinstance(miner, OpenAIMiner)]
    return [[miner] for miner in miners if miner not in endpoints] + ([endpoints] if endpoints else [])


def _user_batch(parts: pa.Table, store: Store, items: Any, key: str, max_text_chars: int) -> Iterator[pa.Table]:
    for part in parts_in(parts):
        for histories in iter_users(store, "histories", part, READ_ROWS, ["user_id", "split", "history", "target"]):
            yield user_requests(histories, ray.get(items), key, max_text_chars)


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
