"""Label every item's interests with the classifier: artifacts `interest_labels` and `item_quality`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.texts import item_texts
from digr.rewards.classifier import load_classifier
from digr.rewards.labeling import item_quality, label_interests
from digr.tables import conform
from jobs.ray_data import map_items
from jobs.runtime import Options, main, say, start_ray
from jobs.stage import Made, run_stage

LABELS, QUALITY = "interest_labels", "item_quality"


class Label:
    """Turn rows of `items` into rows of `interest_labels`; the classifier is loaded once."""

    def __init__(self, config: Config, store: Store) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        self.store, self.threshold = store, config.labels.threshold
        with artifacts.local_files(store, "classifier") as folder:
            self.classify = load_classifier(folder, "cuda" if config.cluster.use_gpu else "cpu")

    def __call__(self, items: pa.Table) -> pa.Table:
        ids = items["item_id"].combine_chunks()
        interests = artifacts.read_table(self.store, "interests", owner=["item"], owner_id=ids.to_pylist())
        labels = label_interests(interests, ids, item_texts(items), classify=self.classify, threshold=self.threshold)
        return conform(LABELS, labels, LABELS)


class Rate:
    """Turn rows of `items` into rows of `item_quality`, from the labels written before."""

    def __init__(self, config: Config, store: Store) -> None:
        self.store = store

    def __call__(self, items: pa.Table) -> pa.Table:
        ids = items["item_id"].combine_chunks()
        order = [("owner_id", "ascending"), ("rank", "ascending")]
        interests = artifacts.read_table(self.store, "interests", owner=["item"], owner_id=ids.to_pylist()).sort_by(order)
        parts = artifacts.open_parts(self.store.uri(LABELS))
        labels = parts.to_table(columns=["owner_id", "rank", "label"], filter=pc.field("owner_id").isin(ids)).sort_by(order)
        quality, num_interests = item_quality(
            pc.index_in(interests["owner_id"], ids).to_numpy(),
            labels["label"].to_numpy(),
            interests["confidence"].fill_null(1.0).to_numpy(),
            len(ids),
        )
        columns = {"item_id": ids, "quality": quality, "num_interests": num_interests.astype(np.int32)}
        return conform(QUALITY, pa.table(columns), QUALITY)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `interest_labels` and `item_quality` with Ray Data; interests of users are counted, not labelled."""

    def build(store: Store, work: str) -> Mapping[str, Made]:
        start_ray(config)
        mined = artifacts.dataset_of(store, "interests")
        num_interests = mined.count_rows(filter=pc.field("owner") == "item")
        say(LABELS, f"{num_interests} interests of {artifacts.require(store, 'items').rows} items")
        rows = map_items(config, store, Label, LABELS, expected=num_interests)
        positive = artifacts.open_parts(store.uri(LABELS)).count_rows(filter=pc.field("label") == 1)
        say(LABELS, f"{positive} of {rows} trusted")
        rated = map_items(config, store, Rate, QUALITY, use_gpu=False)
        facts = {
            "trusted_rate": positive / max(1, rows),
            "num_user_interests_unlabelled": mined.count_rows() - num_interests,
        }
        without = artifacts.open_parts(store.uri(QUALITY)).count_rows(filter=pc.field("num_interests") == 0)
        return {LABELS: Made(rows, facts=facts), QUALITY: Made(rated, facts={"num_without_interests": without})}

    return run_stage(
        config,
        options,
        outputs=[LABELS, QUALITY],
        sections=["labels"],
        inputs=["items", "interests", "classifier"],
        build=build,
    )


if __name__ == "__main__":
    main(run)
