"""Ray workers that hold a sentence encoder: key phrases of texts, and merging the answers of several miners."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from digr.config import Config
from digr.config.interests import ExtractiveMiner
from digr.interests.extractive import Counts, count_phrases, extract_interests, num_buckets
from digr.interests.ledger import raw_responses
from digr.interests.merging import latest_responses, merge_responses
from digr.interests.prompts import Owner, prompt_version
from digr.models.encoders import Encode, load_encoder
from jobs.asking.ledger_tasks import map_tables


def extract(
    config: Config, owner: Owner, miner: ExtractiveMiner, missing: Dataset, everything: Dataset, num_owners: int
) -> Dataset:
    """Answer the missing requests with key phrases, which are counted over all requests."""
    counts = _phrase_counts(everything, num_owners, miner.max_words)
    return _with_encoder(missing, config, _Extract, config, owner, miner, counts)


def merge(config: Config, responses: Dataset) -> Dataset:
    """Merge blocks of whole owners into rows of `interests`; one miner's answers need no encoder, nor workers that hold one."""
    if len(config.interests.miners) == 1:
        return map_tables(responses, _merge_alone, config=config)
    return _with_encoder(responses, config, _Merge, config)


def _with_encoder(blocks: Dataset, config: Config, worker: type, *arguments: Any) -> Dataset:
    return blocks.map_batches(
        worker,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=config.cluster.encode_workers),
        num_gpus=1 if config.cluster.use_gpu else None,
    )


def _load_encoder(config: Config) -> Encode:
    """Load the encoder that compares phrases, inside a worker."""
    import torch  # seconds of every worker's start, and one miner's answers merge without an encoder

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


def _merge_alone(responses: pa.Table, config: Config) -> pa.Table:
    return _Merge(config)(responses)


class _Merge:
    """Merge blocks of whole owners."""

    def __init__(self, config: Config):
        self.config = config
        self.encoder: Encode | None = None

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encode phrases; the model is loaded only where two miners have to be compared."""
        self.encoder = self.encoder or _load_encoder(self.config)
        return self.encoder(texts)

    def __call__(self, responses: pa.Table) -> pa.Table:
        chosen = self.config.interests
        return merge_responses(
            latest_responses(responses), self.encode, similarity=chosen.merge_similarity, max_interests=chosen.max_interests
        )


def _phrase_counts(requests: Dataset, num_owners: int, max_words: int) -> Any:
    """Count phrases over all requests; returns a reference to `Counts`, whose size does not grow with the texts."""
    buckets = num_buckets(num_owners)
    counted = map_tables(requests, _count_batch, max_words=max_words, buckets=buckets)
    return ray.remote(_add_counts).remote(counted.to_arrow_refs(), buckets, num_owners)


def _count_batch(requests: pa.Table, max_words: int, buckets: int) -> pa.Table:
    counts = count_phrases(requests["text"].to_pylist(), max_words, buckets)
    filled = np.flatnonzero(counts)
    return pa.table({"bucket": filled.astype(np.uint32), "owners": counts[filled]})


def _add_counts(parts: list[Any], buckets: int, owners: int) -> Counts:
    total = np.zeros(buckets, np.uint32)
    for part in parts:
        table = ray.get(part)
        total[table["bucket"].to_numpy()] += table["owners"].to_numpy()
    return Counts(total, owners)
