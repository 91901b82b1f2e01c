"""Rank items for every validation and test history: artifacts `recommendations/<sft|grpo>_<valid|test>`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.ids import build_id_index
from digr.partitions import Part, iter_part, parts_of, read_part
from digr.policy.decoding.search import Recommendation, recommend
from digr.policy.examples import Sids, prompt_examples
from digr.policy.model import load_policy
from digr.policy.reasons import load_item_interests, shared_interests
from digr.policy.user_interests import shown_interests
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import load_trie
from digr.tables import conform
from jobs.runtime.datasets import map_parts
from jobs.runtime.session import Options, log, main, start_ray
from jobs.runtime.stage import Output, run_stage, trained_policies
from jobs.training.policy_data import count_cut

SPLITS = ("valid", "test")
BATCH_HISTORIES = 4096
"""Rows of `histories` read at once."""


class Recommend:
    """Turn a part of `histories` into the same parts of `recommendations/<policy>_<split>`, for one policy."""

    def __init__(self, config: Config, store: Store, policy: str) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        device = "cuda" if config.cluster.use_gpu else "cpu"
        self.config, self.store, self.names = config, store, names_of(policy)
        self.learned = artifacts.require(store, f"policy_{policy}").config
        self.trie = load_trie(store).to(device)
        self.ids = build_id_index(self.trie.item_ids)
        self.interests = load_item_interests(store, self.trie.item_ids)
        self.sids = Sids(self.ids, sid_texts(self.trie.codes.cpu().numpy()))
        with artifacts.local_files(store, f"policy_{policy}") as folder:
            self.policy = load_policy(folder, device, config.decoding.dtype, config.policy.attention)

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Rank items for a part."""
        shown = shown_interests(self.learned, lambda: read_part(self.store, "interest_labels", part))
        for rows in iter_part(self.store, "histories", part, BATCH_HISTORIES):
            histories = rows.filter(pc.is_in(rows["split"], pa.array(SPLITS)))
            if len(histories):
                found = self.recommend(histories, shown.of_rows(histories))
                for split in SPLITS:
                    yield self.names[split], found.filter(pc.equal(histories["split"], split))

    def recommend(self, histories: pa.Table, interests: pa.Array) -> pa.Table:
        """Rank items for some histories, whose prompts show `interests`."""
        found = self._search(prompt_examples(histories, self.sids, self.config.data.max_history, interests)["prompt"].to_pylist())
        history = histories["history"].combine_chunks()
        places, ends = self.ids.find(history.flatten()), history.value_lengths().to_numpy().cumsum()
        spans = np.split(places, ends)[: len(found)]  # behind the last end stands an empty piece
        told = zip(spans, (one.places for one in found), interests.to_pylist(), strict=True)
        shared = [shared_interests(self.interests, *each) for each in told]
        columns = {
            "example_id": histories["example_id"].combine_chunks(),
            "item_ids": pa.array([one.item_ids for one in found], pa.list_(pa.string())),
            "scores": pa.array([one.scores for one in found], pa.list_(pa.float64())),
            "reasons": pa.array(shared, pa.list_(pa.list_(pa.string()))),
        }
        return conform("recommendations", pa.table(columns), "recommendations")

    def _search(self, prompts: list[str]) -> list[Recommendation]:
        """Decode prompts of like length together."""
        found, decoding = dict[int, Recommendation](), self.config.decoding
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), decoding.batch_size):
            rows = order[start : start + decoding.batch_size]
            batch = [prompts[row] for row in rows]
            found.update(zip(rows, recommend(self.policy, self.trie, batch, decoding.k, decoding.beam_width), strict=True))
        return [found[row] for row in range(len(prompts))]


def names_of(policy: str) -> dict[str, str]:
    """Return the artifact of each split."""
    return {split: f"recommendations/{policy}_{split}" for split in SPLITS}


def run_one(config: Config, options: Options, policy: str) -> dict[str, Any]:
    """Build the recommendations of one policy with Ray: one model start, all splits in one pass."""
    names = names_of(policy)

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        histories = artifacts.dataset_of(store, "histories")
        expected = {name: histories.count_rows(filter=pc.field("split") == split) for split, name in names.items()}
        counts = ", ".join(f"{expected[name]} {split}" for split, name in names.items())
        log(names[SPLITS[0]], f"{counts} histories, beam {config.decoding.beam_width}, {config.cluster.encode_workers} workers")
        rows = map_parts(config, store, Recommend, parts_of(store, "user"), list(names.values()), arguments=(policy,))
        for name in names.values():
            if rows[name] != expected[name]:
                raise ValueError(f"{store.uri(name)}: {rows[name]} rows written, {expected[name]} histories of its split")
        return {name: Output(rows[name], facts=count_cut(config, store, [split])) for split, name in names.items()}

    inputs = ["histories", "item_sids", "interest_labels", f"policy_{policy}"]
    return run_stage(config, options, outputs=list(names.values()), sections=["decoding"], inputs=inputs, build=build)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build the recommendations of every policy that this run has, on the validation and test histories."""
    done = {policy: run_one(config, options, policy) for policy in trained_policies(config, options)}
    statuses = {summary["status"] for summary in done.values()}
    return {"stage": "recommendations", "status": statuses.pop() if len(statuses) == 1 else "built", "lists": done}


if __name__ == "__main__":
    main(run)
