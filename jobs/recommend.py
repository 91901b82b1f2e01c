"""Rank items for every validation and test history: artifacts `recommendations/<sft|grpo>_<valid|test>`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.ids import build_id_index
from digr.policy.decoding.search import Recommendation, recommend
from digr.policy.examples import Sids, prompt_examples
from digr.policy.model import load_policy
from digr.policy.reasons import load_item_interests, shared_interests
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import load_trie
from digr.tables import conform
from jobs.runtime.datasets import SplitSink
from jobs.runtime.parts import read_parts
from jobs.runtime.session import Options, main, say, start_ray
from jobs.runtime.stage import Made, run_stage, store_of

SPLITS = ("valid", "test")
BLOCK_ROWS = 4096
"""Histories handed to an actor at once."""


class Recommend:
    """Turn rows of `histories` into rows of `recommendations` with their split, for one policy."""

    def __init__(self, config: Config, store: Store, policy: str) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        device = "cuda" if config.cluster.use_gpu else "cpu"
        self.config = config
        self.trie = load_trie(store)
        self.ids = build_id_index(self.trie.item_ids)
        self.interests = load_item_interests(store, self.trie.item_ids)
        self.sids = Sids(self.ids, sid_texts(self.trie.codes.numpy()))
        self.trie = self.trie.to(device)
        with artifacts.local_files(store, f"policy_{policy}") as folder:
            self.policy = load_policy(folder, device)

    def __call__(self, histories: pa.Table) -> pa.Table:
        """Recommend for one batch."""
        found = self._search(prompt_examples(histories, self.sids, self.config.data.max_history)["prompt"].to_pylist())
        history = histories["history"].combine_chunks()
        places, ends = self.ids.find(history.flatten()), history.value_lengths().to_numpy().cumsum()
        spans = np.split(places, ends)[: len(found)]  # behind the last end stands an empty piece
        shared = [shared_interests(self.interests, span, one.places) for span, one in zip(spans, found, strict=True)]
        columns = {
            "example_id": histories["example_id"].combine_chunks(),
            "item_ids": pa.array([one.item_ids for one in found], pa.list_(pa.string())),
            "scores": pa.array([one.scores for one in found], pa.list_(pa.float64())),
            "reasons": pa.array(shared, pa.list_(pa.list_(pa.string()))),
        }
        return conform("recommendations", pa.table(columns), "recommendations").append_column("split", histories["split"])

    def _search(self, prompts: list[str]) -> list[Recommendation]:
        """Decode prompts of like length together."""
        found, decoding = dict[int, Recommendation](), self.config.decoding
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), decoding.batch_size):
            rows = order[start : start + decoding.batch_size]
            batch = [prompts[row] for row in rows]
            found.update(zip(rows, recommend(self.policy, self.trie, batch, decoding.k, decoding.beam_width), strict=True))
        return [found[row] for row in range(len(prompts))]


def run_one(config: Config, options: Options, policy: str) -> dict[str, Any]:
    """Build the recommendations of one policy with Ray Data: one model start, all splits in one pass."""
    names = {split: f"recommendations/{policy}_{split}" for split in SPLITS}

    def build(store: Store, work: str) -> Mapping[str, Made]:
        import ray

        start_ray(config)
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        rows = read_parts(store.uri("histories"), wanted=pc.field("split").isin(SPLITS))
        histories = artifacts.dataset_of(store, "histories")
        expected = {split: histories.count_rows(filter=pc.field("split") == split) for split in SPLITS}
        counts = ", ".join(f"{count} {split}" for split, count in expected.items())
        beams, workers = config.decoding.beam_width, config.cluster.encode_workers
        say(names[SPLITS[0]], f"{counts} histories, beam {beams}, {workers} workers")
        rows.repartition(target_num_rows_per_block=BLOCK_ROWS).map_batches(
            Recommend,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_constructor_args=(config, store, policy),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if config.cluster.use_gpu else None,
        ).write_datasink(SplitSink({split: store.uri(name) for split, name in names.items()}))
        made = {}
        for split, name in names.items():
            written = artifacts.open_parts(store.uri(name)).count_rows()
            if written != expected[split]:
                raise ValueError(f"{store.uri(name)}: {written} rows written, {expected[split]} histories of split {split}")
            made[name] = Made(written)
        return made

    inputs = ["histories", "item_sids", "interest_labels", f"policy_{policy}"]
    return run_stage(config, options, outputs=list(names.values()), sections=["decoding"], inputs=inputs, build=build)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build the recommendations of every policy that this run has, on the validation and test histories."""
    store = store_of(config)
    policies = ["sft"] + (["grpo"] if options.dry_run or artifacts.read_manifest(store, "policy_grpo") else [])
    done = {policy: run_one(config, options, policy) for policy in policies}
    statuses = {summary["status"] for summary in done.values()}
    return {"stage": "recommendations", "status": statuses.pop() if len(statuses) == 1 else "built", "lists": done}


if __name__ == "__main__":
    main(run)
