"""Label the interests of items and users, and compute the quality of every item and user: artifact `interest_labels`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import VllmJudge
from digr.config.models import ModelConfig
from digr.interests.item_lines import read_item_lines
from digr.interests.ledger import VERDICTS
from digr.models.encoders import load_encoder
from digr.models.endpoint import check_keys
from digr.partitions import Part, parts_of
from digr.rewards.classifier import load_classifier
from digr.rewards.labeling import MAX_TEXT_CHARS, label_facts, label_interests, labelled_texts
from digr.tables import flat_interests
from jobs.asking.votes import count_transitions, read_votes
from jobs.runtime.command_line import main
from jobs.runtime.datasets import map_parts
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage

STAGE = "interest_labels"
BATCH_OWNERS = 1024
"""Owners labelled at once, about 4000 interests; each distinct phrase and text of them is encoded once."""


class Label:
    """Turn a part of `interests` into one of `interest_labels`; the classifier is loaded once."""

    def __init__(self, config: Config, store: Store, work: str, items: Any) -> None:
        self.config, self.store, self.labels, self.work, self.items = config, store, config.labels, work, items
        if "classifier" in self.labels.labelers:
            self.classify = self.load_classifier()

    def load_classifier(self) -> Any:
        """Load the classifier: (interests, owners' texts, owners' ids) -> probabilities."""
        import torch

        cluster = self.config.cluster
        torch.set_num_threads(cluster.encode_threads)
        device = "cuda" if cluster.use_gpu else "cpu"
        with artifacts.local_files(self.store, "classifier") as folder:
            return load_classifier(folder, lambda base: load_encoder(base, device, cluster.encode_batch_size), device)

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Label a part."""
        import ray

        of_part = {name: read_votes(name, self.store, part, self.work) for name in self.labels.labelers if name != "classifier"}
        items, start = ray.get(self.items) if part.owner == "user" else None, 0
        for interests, texts in labelled_texts(self.store, part, items, BATCH_OWNERS):
            flat = flat_interests(interests)
            votes = dict[str, np.ndarray]()
            for name in self.labels.labelers:
                if name == "classifier":
                    rows = flat["row"].to_pylist()
                    phrases, owner_ids = flat["interest"].to_pylist(), flat["owner_id"].to_pylist()
                    votes[name] = self.classify(phrases, [texts[row] for row in rows], owner_ids)
                else:
                    votes[name] = of_part[name][start : start + len(flat)]
            start += len(flat)
            yield STAGE, label_interests(interests, votes, self.labels.combine, self.labels.threshold)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `interest_labels` with Ray."""
    labels, owners, has_judge = config.labels, config.interests.owners, "judge" in config.labels.labelers

    def build(store: Store, work: str) -> Mapping[str, Output]:
        check_keys([labels.judge] if has_judge else [])
        start_ray(config)
        import ray

        from jobs.asking.judge import ask_judge

        num_owners = artifacts.require(store, "interests").rows or 0
        log(STAGE, f"interests of {num_owners} items and users, labeled by {', '.join(labels.labelers)}")
        items = ray.remote(read_item_lines).remote(store, MAX_TEXT_CHARS, False) if "user" in owners else None
        judged: dict[str, Output] = {}
        if "behavioural" in labels.labelers:
            count_transitions(config, store, work)
        if has_judge:
            judged[VERDICTS] = ask_judge(config, store, work, items)
        parts = [part for owner in owners for part in parts_of(store, owner)]
        rows = map_parts(config, store, Label, parts, [STAGE], arguments=(work, items))[STAGE]
        if rows != num_owners:
            raise ValueError(f"{store.uri(STAGE)}: {rows} rows, {num_owners} expected; interests changed: mine with --force")
        facts = label_facts(artifacts.open_parts(store.uri(STAGE)).to_batches(), labels.labelers, labels.threshold)
        log(STAGE, f"{facts['trusted_rate']:.1%} of {facts['num_interests']} interests trusted")
        return {STAGE: Output(rows, judged[VERDICTS].rejected if judged else {}, facts)} | judged

    inputs = ["items", "interests"] + ["classifier"] * ("classifier" in labels.labelers)
    inputs += ["histories"] * ("behavioural" in labels.labelers or "user" in owners)
    models: dict[str, ModelConfig] = {"classifier.base": config.classifier.base} if "classifier" in labels.labelers else {}
    models |= {"labels.judge": ModelConfig(name=labels.judge.model)} if isinstance(labels.judge, VllmJudge) else {}
    return run_stage(
        config,
        options,
        outputs=[STAGE] + [VERDICTS] * has_judge,
        sections=["labels"],
        inputs=inputs,
        models=models,
        keep=[VERDICTS],
        build=build,
    )


if __name__ == "__main__":
    main(run)
