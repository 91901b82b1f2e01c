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
from digr.policy.beam import recommend
from digr.policy.examples import Sids, prompt_examples
from digr.policy.model import load_policy
from digr.policy.reasons import load_item_interests, shared_interests
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import load_trie
from digr.tables import conform
from jobs.runtime import Options, main, say, start_ray
from jobs.stage import Made, run_stage, store_of

SPLITS = ("valid", "test")


class Recommend:
    """Turn rows of `histories` into rows of `recommendations`, for one policy and one split."""

    def __init__(self, config: Config, store: Store, policy: str, split: str) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        device = "cuda" if config.cluster.use_gpu else "cpu"
        self.config, self.split = config, split
        self.trie = load_trie(store)
        self.ids = build_id_index(self.trie.item_ids)
        self.interests = load_item_interests(store, self.trie.item_ids)
        self.sids = Sids(self.trie.item_ids, sid_texts(self.trie.codes.numpy()))
        self.trie = self.trie.to(device)
        with artifacts.local_files(store, f"policy_{policy}") as folder:
            self.policy = load_policy(folder, device)

    def __call__(self, histories: pa.Table) -> pa.Table:
        rows = histories.filter(pc.equal(histories["split"], self.split))
        decoding = self.config.decoding
        prompts = prompt_examples(rows, self.sids, self.config.data.max_history)["prompt"].to_pylist()
        found = []
        for start in range(0, len(prompts), decoding.batch_size):
            batch = prompts[start : start + decoding.batch_size]
            found += recommend(self.policy, self.trie, batch, decoding.k, decoding.beam_width)
        history = rows["history"].combine_chunks()
        places, ends = self.ids.find(history.flatten()), history.value_lengths().to_numpy().cumsum()
        spans = np.split(places, ends)[: len(found)]  # behind the last end stands an empty piece
        shared = [shared_interests(self.interests, span, one.places) for span, one in zip(spans, found, strict=True)]
        columns = {
            "example_id": rows["example_id"].combine_chunks(),
            "item_ids": pa.array([one.item_ids for one in found], pa.list_(pa.string())),
            "scores": pa.array([one.scores for one in found], pa.list_(pa.float64())),
            "reasons": pa.array(shared, pa.list_(pa.list_(pa.string()))),
        }
        return conform("recommendations", pa.table(columns), "recommendations")


def run_one(config: Config, options: Options, policy: str, split: str) -> dict[str, Any]:
    """Build the recommendations of one policy on one split with Ray Data."""
    name = f"recommendations/{policy}_{split}"

    def build(store: Store, work: str) -> Mapping[str, Made]:
        import ray

        start_ray(config)
        source, _ = artifacts.filesystem_of(store.uri("histories"))
        target, path = artifacts.filesystem_of(store.uri(name))
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        rows = ray.data.read_parquet(artifacts.list_parts(store.uri("histories")), filesystem=source)
        expected = artifacts.dataset_of(store, "histories").count_rows(filter=pc.field("split") == split)
        say(name, f"{expected} histories, beam {config.decoding.beam_width}, {config.cluster.encode_workers} workers")
        rows.repartition(target_num_rows_per_block=4096).map_batches(
            Recommend,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_constructor_args=(config, store, policy, split),
            compute=ray.data.ActorPoolStrategy(size=config.cluster.encode_workers),
            num_gpus=1 if config.cluster.use_gpu else None,
        ).write_parquet(path, filesystem=target)
        written = artifacts.open_parts(store.uri(name)).count_rows()
        if written != expected:
            raise ValueError(f"{store.uri(name)}: {written} rows written, {expected} histories of split {split}")
        return {name: Made(written)}

    inputs = ["histories", "item_sids", "interest_labels", f"policy_{policy}"]
    return run_stage(config, options, outputs=[name], sections=["decoding"], inputs=inputs, build=build)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build the recommendations of every policy that this run has, on the validation and test histories."""
    store = store_of(config)
    policies = ["sft"] + (["grpo"] if options.dry_run or artifacts.read_manifest(store, "policy_grpo") else [])
    done = {f"{policy}_{split}": run_one(config, options, policy, split) for policy in policies for split in SPLITS}
    statuses = {summary["status"] for summary in done.values()}
    return {"stage": "recommendations", "status": statuses.pop() if len(statuses) == 1 else "built", "lists": done}


if __name__ == "__main__":
    main(run)
