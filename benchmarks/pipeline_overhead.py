"""What Ray costs on one machine: stage seconds of the quickstart against the same library calls in one process.

The pipeline runs first. Then each of its Ray stages runs again on the same input artifacts without Ray: in one process with as
many PyTorch threads as the pipeline's workers have together, and with plain PyTorch instead of DeepSpeed. Stages that use no Ray
(data, semantic IDs, evaluation) are left out of the ratio. Epochs and steps are fixed, so both do the same work.
"""

import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Bar, Measurement, main
from benchmarks.trainings import fine_tune, reinforce
from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, load_config
from digr.config.interests import ExtractiveMiner
from digr.interests.extractive import PhraseCounts, count_phrases, extract_interests, num_buckets
from digr.interests.ledger import finish_responses, raw_responses
from digr.interests.merging import merge_responses
from digr.interests.prompts import item_requests, prompt_version, request_key
from digr.models.encoders import load_encoder
from digr.partitions import parts_of
from digr.rewards.calibration import calibrate
from digr.rewards.pairs import pair_tables
from digr.rewards.training import fit_classifier

BAR = Bar(full=1.5, quick=15.0, quick_reason="two stages of a second of work each, before which Ray starts for ten times as long")
FIXED = ["sft.patience=1000", "sft.epochs=6", "grpo.steps=40", "ablations=[]", "ranking.enabled=false"]
QUICK = [
    "data.synthetic.num_items=60",
    "data.synthetic.num_users=200",
    "data.synthetic.num_interests=6",
    "classifier.max_pairs=200",
    "train.num_workers=1",
]
QUICK_JOBS = 3
"""Jobs of the quick form."""


def mine(config: Config, store: Store) -> None:
    """Find key phrases of every item's text and merge them."""
    chosen, miner = config.interests, ExtractiveMiner()
    encoder = load_encoder(chosen.encoder, batch_size=config.cluster.encode_batch_size)

    def encode(texts: list[str]) -> np.ndarray:
        return encoder(texts)

    items = artifacts.read_table(store, "items")
    requests = item_requests(items, request_key("item", miner.model_dump(mode="json")), "text", chosen.max_text_chars)
    texts, buckets = requests["text"].to_pylist(), num_buckets(len(items))
    counts = PhraseCounts(count_phrases(texts, miner.max_words, buckets), len(texts))
    limits = {"max_words": miner.max_words, "min_owners": miner.min_owners, "max_interests": chosen.max_interests}
    found = extract_interests(texts, counts, encode, **limits)
    raw = raw_responses(requests, miner.name, prompt_version("item", "text"), "text", response=found)
    responses = finish_responses(raw)
    ids = items["item_id"].combine_chunks()
    merge_responses(responses, "item", ids, encode, similarity=chosen.merge_similarity, max_interests=chosen.max_interests)


def classify(config: Config, store: Store) -> None:
    """Draw pairs, train the interest classifier and calibrate it."""
    chosen, rng = config.classifier, np.random.default_rng(config.run.seed)
    sides = pair_tables(store, chosen, encode=load_encoder(chosen.base.model_copy(update={"max_tokens": 32})), rng=rng)
    classifier = fit_classifier(load_encoder(chosen.base), sides.train, chosen, rng=rng)
    held_out = sides.held_out
    logits = classifier.logits(*(held_out[name].to_pylist() for name in ("phrase", "text", "item_id")))
    calibrate(logits, held_out["label"].to_numpy(), held_out["kind"].to_pylist(), held_out["half"].to_numpy())


def label(config: Config, store: Store) -> None:
    """Label and rate every item's interests, by the class that the Ray workers map."""
    from jobs.label_interests import Label

    for part in parts_of(store, "item"):
        list(Label(config, store, "", None)(part))


def embed(config: Config, store: Store) -> None:
    """Embed every item, by the function that the Ray workers map."""
    from jobs.embed_items import Embed

    for part in parts_of(store, "item"):
        list(Embed(config, store)(part))


def recommend(config: Config, store: Store) -> None:
    """Rank items for both policies and both splits, by the function that the Ray workers map."""
    from jobs.ranking.recommender import Recommend

    for policy in ("sft", "grpo"):
        for part in parts_of(store, "user"):
            list(Recommend(config, store, policy, [])(part))


def train_with_sft(config: Config, store: Store) -> None:
    """Make the training sequences and train the policy."""
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(config, store, Path(folder) / "best")


def train_with_grpo(config: Config, store: Store) -> None:
    """Train the fine-tuned policy with GRPO."""
    with artifacts.local_files(store, "policy_sft") as files, tempfile.TemporaryDirectory() as folder:
        reinforce(config, store, files, Path(folder) / "best")


STAGES: dict[str, Callable[[Config, Store], None]] = {
    "mine_interests": mine,
    "train_classifier": classify,
    "label_interests": label,
    "embed_items": embed,
    "train_sft": train_with_sft,
    "train_grpo": train_with_grpo,
    "recommend": recommend,
}
"""Job -> the same work without Ray."""


def measure(quick: bool) -> Measurement:
    """Run the pipeline, then its Ray stages without Ray; the quick form stops after the classifier."""
    from jobs.pipeline import plan
    from jobs.runtime.session import Options

    with tempfile.TemporaryDirectory() as folder:
        config = load_config("configs/quickstart.toml", [*FIXED, *(QUICK if quick else []), f"run.dir={folder}"])
        with_ray, without = dict[str, float](), dict[str, float]()
        for step in plan(config)[: QUICK_JOBS if quick else None]:
            start = time.monotonic()
            importlib.import_module(f"jobs.{step.job}").run(step.config, Options())
            with_ray[step.job] = round(time.monotonic() - start, 2)
        torch.set_num_threads(config.train.num_workers * config.train.threads_per_worker)
        for job in (job for job in STAGES if job in with_ray):
            start = time.monotonic()
            STAGES[job](config, Store(folder))
            without[job] = round(time.monotonic() - start, 2)
    figures: dict[str, float] = {}
    for job, seconds in without.items():
        figures |= {f"{job}_pipeline_seconds": with_ray[job], f"{job}_library_seconds": seconds}
    total, peer = sum(with_ray[job] for job in without), sum(without.values())
    figures |= {"pipeline_seconds": round(total, 1), "library_seconds": round(peer, 1)}
    return Measurement(figures, ratio=total / peer)


if __name__ == "__main__":
    main(measure, BAR)
