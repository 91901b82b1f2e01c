"""Embed every item's text and trusted interests: artifact `item_embeddings`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.texts import item_texts
from digr.interests.images import show_images
from digr.interests.summary import found_without
from digr.models.encoders import load_encoder, load_image_encoder
from digr.sids.item_vectors import image_vectors, item_vectors
from digr.tables import conform
from jobs.runtime.datasets import map_items
from jobs.runtime.session import Options, main, say, start_ray
from jobs.runtime.stage import Made, run_stage

STAGE = "item_embeddings"


class Embed:
    """Turn rows of `items` into rows of `item_embeddings`; reads the interests of its own batch only."""

    def __init__(self, config: Config, store: Store) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        device = "cuda" if config.cluster.use_gpu else "cpu"
        self.config, self.store = config.embeddings, store
        self.encode = load_encoder(self.config.encoder, self.config.max_tokens, device, config.cluster.encode_batch_size)
        image_encoder = self.config.image_encoder
        self.encode_images = load_image_encoder(image_encoder, device) if image_encoder else None
        self.limits = {"max_bytes": config.interests.max_image_bytes, "max_side": config.interests.max_image_side}

    def __call__(self, items: pa.Table) -> pa.Table:
        """Embed one batch."""
        ids = items["item_id"].combine_chunks()
        order = [("owner_id", "ascending"), ("rank", "ascending")]
        interests = artifacts.read_table(self.store, "interests", owner=["item"], owner_id=ids.to_pylist()).sort_by(order)
        labels = artifacts.read_table(self.store, "interest_labels", owner=["item"], owner_id=ids.to_pylist()).sort_by(order)
        if not interests.select(["owner_id", "rank", "interest"]).equals(labels.select(["owner_id", "rank", "interest"])):
            raise ValueError(f"{self.store.uri('interest_labels')}: not the labels of interests; run jobs.label_interests again")
        vectors = item_vectors(
            item_texts(items),
            interests["interest"].to_pylist(),
            np.asarray(pc.index_in(interests["owner_id"], ids)),
            np.asarray(interests["confidence"].fill_null(1.0)),
            np.asarray(labels["label"]) == 1,
            encode=self.encode,
            interests=self.config.interests,
            interest_weight=self.config.interest_weight,
            counted=found_without(interests["miners"], left_out) if (left_out := self.config.without_miners) else None,
        )
        columns = {
            "item_id": ids,
            "embedding": _lists(vectors.embedding, np.ones(len(ids), bool)),
            "interest_embedding": _lists(vectors.interest_embedding, vectors.has_trusted),
            "text_only": vectors.text_only,
        }
        if self.encode_images:
            shown = show_images(items["image_uri"].to_pylist(), **self.limits)
            columns["image_embedding"] = _lists(*image_vectors([image.url for image in shown], self.encode_images))
        return conform(STAGE, pa.table(columns), STAGE)


def _lists(vectors: np.ndarray, present: np.ndarray) -> pa.Array:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pc.if_else(pa.array(present), lists.cast(pa.list_(pa.float32())), pa.scalar(None, pa.list_(pa.float32())))


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `item_embeddings` with Ray Data; an item without chosen interests falls back to its text, counted."""

    def build(store: Store, work: str) -> Mapping[str, Made]:
        start_ray(config)
        num_items = artifacts.require(store, "items").rows or 0
        say(STAGE, f"{num_items} items, encoder {config.embeddings.encoder}, interests {config.embeddings.interests}")
        rows = map_items(config, store, Embed, STAGE)
        parts = artifacts.open_parts(store.uri(STAGE))
        without_trusted = parts.count_rows(filter=pc.field("interest_embedding").is_null())
        fallbacks = parts.count_rows(filter=pc.field("text_only"))
        dim = len(parts.head(1, columns=["embedding"])["embedding"][0])
        facts = {"dim": dim, "num_text_only": fallbacks, "num_without_trusted_interests": without_trusted}
        if config.embeddings.image_encoder:
            facts["num_without_image"] = parts.count_rows(filter=pc.field("image_embedding").is_null())
        return {STAGE: Made(rows, facts=facts)}

    return run_stage(
        config,
        options,
        outputs=[STAGE],
        sections=["embeddings"],
        inputs=["items", "interests", "interest_labels", "item_quality"],
        build=build,
    )


if __name__ == "__main__":
    main(run)
