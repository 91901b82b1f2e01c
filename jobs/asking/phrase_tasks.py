"""Ray workers with a sentence encoder: they extract key phrases of texts, and merge the answers of several miners."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ExtractiveMiner
from digr.interests.extractive import PhraseCounts, count_phrases, extract_interests, num_buckets
from digr.interests.ledger import LEDGER, raw_responses
from digr.interests.merging import merge_responses
from digr.interests.prompts import Owner, prompt_version
from digr.models.encoders import Encode, load_encoder
from digr.partitions import Part, parts_of, read_part
from digr.tables import TABLES
from jobs.runtime.datasets import OutputTables, map_parts, map_tables, map_with_model

_MERGED_OWNERS = 2048
"""Owners merged per batch."""


def extract(
    config: Config, owner: Owner, miner: ExtractiveMiner, missing: Dataset, *, everything: Dataset, num_owners: int
) -> Dataset:
    """Answer the missing requests with key phrases, which are counted over all requests."""
    counts = _phrase_counts(everything, num_owners, miner.max_words)
    return map_with_model(missing, config, _Extract, (config, owner, miner, counts))


def merge(config: Config, store: Store, owner: Owner, folder: str) -> None:
    """Write `interests` of all items or users, part by part, from the files of `answers_by_part`.

    A single miner's answers are merged without an encoder.
    """
    worker: Any = _Merge if len(config.interests.miners) > 1 else _merge_alone
    map_parts(config, store, worker, parts_of(store, owner), ["interests"], arguments=(folder,))


def _load_encoder(config: Config) -> Encode:
    """Load the encoder that compares phrases, inside a worker."""
    import torch  # takes seconds, and a single miner's answers need no encoder

    torch.set_num_threads(config.cluster.encode_threads)
    device = "cuda" if config.cluster.use_gpu else "cpu"
    return load_encoder(config.interests.encoder, device, config.cluster.encode_batch_size)


class _Extract:
    """Answer batches of requests with key phrases."""

    def __init__(self, config: Config, owner: Owner, miner: ExtractiveMiner, counts: Any):
        self.encode, self.counts = _load_encoder(config), ray.get(counts)
        self.limit, self.miner, self.version = config.interests.max_interests, miner, prompt_version(owner, "text")

    def __call__(self, requests: pa.Table) -> pa.Table:
        limits = {"max_words": self.miner.max_words, "min_owners": self.miner.min_owners, "max_interests": self.limit}
        found = extract_interests(requests["text"].to_pylist(), self.counts, self.encode, **limits)
        return raw_responses(requests, self.miner.name, self.version, "text", response=found)


def _merge_alone(part: Part, config: Config, store: Store, folder: str) -> OutputTables:
    return _Merge(config, store, folder)(part)


class _Merge:
    """Merge the answers about the owners of a part."""

    def __init__(self, config: Config, store: Store, folder: str):
        self.config, self.store, self.folder = config, store, folder
        self.encoder: Encode | None = None

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encode phrases; the model is loaded only if phrases of two miners must be compared."""
        self.encoder = self.encoder or _load_encoder(self.config)
        return self.encoder(texts)

    def __call__(self, part: Part) -> OutputTables:
        chosen = self.config.interests
        answers = artifacts.open_parts(f"{self.folder}/{artifacts.part_name(part.number)}", TABLES[LEDGER].schema).to_table()
        owner_ids = _owner_ids(self.store, part)
        place = pc.index_in(answers["owner_id"], owner_ids)
        for start in range(0, len(owner_ids), _MERGED_OWNERS):
            here = pc.and_(pc.greater_equal(place, start), pc.less(place, start + _MERGED_OWNERS))
            merged = merge_responses(
                answers.filter(here),
                part.owner,
                owner_ids.slice(start, _MERGED_OWNERS),
                self.encode,
                similarity=chosen.merge_similarity,
                max_interests=chosen.max_interests,
            )
            yield "interests", merged


def _owner_ids(store: Store, part: Part) -> pa.Array:
    """Return the distinct items or users of a part; rows of an owner are contiguous."""
    name, column = ("items", "item_id") if part.owner == "item" else ("histories", "user_id")
    return pc.unique(read_part(store, name, part, [column])[column])


def _phrase_counts(requests: Dataset, num_owners: int, max_words: int) -> Any:
    """Count phrases over all requests; return a reference to `PhraseCounts`, whose size is bounded."""
    buckets = num_buckets(num_owners)
    counted = map_tables(requests, _count_batch, max_words=max_words, buckets=buckets)
    return ray.remote(_add_counts).remote(counted.to_arrow_refs(), buckets, num_owners)


def _count_batch(requests: pa.Table, max_words: int, buckets: int) -> pa.Table:
    counts = count_phrases(requests["text"].to_pylist(), max_words, buckets)
    filled = np.flatnonzero(counts)
    return pa.table({"bucket": filled.astype(np.uint32), "owners": counts[filled]})


def _add_counts(parts: list[Any], buckets: int, owners: int) -> PhraseCounts:
    total = np.zeros(buckets, np.uint32)
    for part in parts:
        table = ray.get(part)
        total[table["bucket"].to_numpy()] += table["owners"].to_numpy()
    return PhraseCounts(total, owners)
