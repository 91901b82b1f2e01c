"""Label the interests of items and users, and rate every item: artifacts `interest_labels` and `item_quality`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.interests.ledger import VERDICTS
from digr.models.encoders import load_encoder
from digr.models.endpoint import check_keys
from digr.rewards.classifier import load_classifier
from digr.rewards.labeling import item_quality, label_interests, labeler_facts, owner_texts, quality_histogram
from digr.tables import conform
from jobs.asking.votes import count_transitions, read_votes
from jobs.runtime.datasets import map_items
from jobs.runtime.session import Options, main, say, start_ray
from jobs.runtime.stage import Made, run_stage

LABELS, QUALITY = "interest_labels", "item_quality"
BLOCK_ROWS = 4096
"""Interests labelled at once, of about a thousand owners; each distinct phrase and text of them is encoded once."""


class Label:
    """Turn rows of `interests` into rows of `interest_labels`; the classifier is loaded once."""

    def __init__(self, config: Config, store: Store, work: str) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        self.store, self.labels, self.work = store, config.labels, work
        device, batch_size = "cuda" if config.cluster.use_gpu else "cpu", config.cluster.encode_batch_size
        if "classifier" in self.labels.labelers:
            with artifacts.local_files(store, "classifier") as folder:
                self.classify = load_classifier(
                    folder, lambda base, tokens: load_encoder(base, tokens, device, batch_size), device
                )

    def __call__(self, interests: pa.Table) -> pa.Table:
        votes: dict[str, np.ndarray] = {}
        for labeler in self.labels.labelers:
            if labeler == "classifier":
                texts = owner_texts(self.store, interests)
                votes[labeler] = self.classify(interests["interest"].to_pylist(), texts, interests["owner_id"].to_pylist())
            else:
                votes[labeler] = read_votes(labeler, interests, self.work)
        return conform(LABELS, label_interests(interests, votes, self.labels.combine, self.labels.threshold), LABELS)


def rate(items: pa.Table, config: Config, store: Store) -> pa.Table:
    """Turn rows of `items` into rows of `item_quality`, from the labels written before."""
    ids = items["item_id"].combine_chunks()
    order = [("owner_id", "ascending"), ("rank", "ascending")]
    interests = artifacts.read_table(store, "interests", owner=["item"], owner_id=ids.to_pylist()).sort_by(order)
    wanted = (pc.field("owner") == "item") & pc.field("owner_id").isin(ids)
    labels = artifacts.open_parts(store.uri(LABELS)).to_table(["owner_id", "rank", "label"], filter=wanted).sort_by(order)
    quality, num_interests = item_quality(
        pc.index_in(interests["owner_id"], ids).to_numpy(),
        labels["label"].to_numpy(),
        interests["confidence"].fill_null(1.0).to_numpy(),
        len(ids),
    )
    columns = {"item_id": ids, "quality": quality, "num_interests": num_interests.astype(np.int32)}
    return conform(QUALITY, pa.table(columns), QUALITY)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `interest_labels` and `item_quality` with Ray Data."""
    labels, has_judge = config.labels, "judge" in config.labels.labelers

    def build(store: Store, work: str) -> Mapping[str, Made]:
        check_keys([labels.judge] if has_judge else [])
        start_ray(config)
        from jobs.asking.judge import ask_judge

        say(LABELS, f"{artifacts.require(store, 'interests').rows} interests, labeled by {', '.join(labels.labelers)}")
        judged: dict[str, Made] = {}
        if "behavioural" in labels.labelers:
            count_transitions(config, store, work)
        if has_judge:
            judged[VERDICTS] = ask_judge(config, store, work)
        rows = map_items(config, store, Label, LABELS, source="interests", arguments=(work,), block_rows=BLOCK_ROWS)
        rated = map_items(config, store, rate, QUALITY)
        parts, qualities = (artifacts.open_parts(store.uri(name)) for name in (LABELS, QUALITY))
        positive = parts.count_rows(filter=pc.field("label") == 1)
        say(LABELS, f"{positive} of {rows} trusted")
        of_users = parts.count_rows(filter=pc.field("owner") == "user")
        facts = {"trusted_rate": positive / max(1, rows), "num_interests_of_users": of_users}
        facts |= labeler_facts(parts.to_batches(), labels.labelers, labels.threshold)
        rating = quality_histogram(qualities.to_batches(columns=["quality", "num_interests"]))
        rejected = judged[VERDICTS].rejected if judged else {}
        return {LABELS: Made(rows, rejected, facts), QUALITY: Made(rated, facts=rating)} | judged

    inputs = ["items", "interests"] + ["classifier"] * ("classifier" in labels.labelers)
    inputs += ["histories"] * ("behavioural" in labels.labelers or "user" in config.interests.owners)
    outputs = [LABELS, QUALITY] + [VERDICTS] * has_judge
    return run_stage(config, options, outputs=outputs, sections=["labels"], inputs=inputs, keep=[VERDICTS], build=build)


if __name__ == "__main__":
    main(run)
