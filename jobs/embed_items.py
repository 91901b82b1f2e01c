"""Embed every item's text and trusted interests: artifact `item_embeddings`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.models import ModelConfig
from digr.data.texts import item_texts
from digr.images.showing import image_rules, show_images
from digr.interests.summary import found_without
from digr.models.encoders import Encode, load_encoder, load_image_encoder
from digr.partitions import STARTS, Part, iter_aligned, part_starts, parts_of
from digr.sids.item_vectors import image_vectors, item_vectors
from digr.tables import conform, flat_interests
from jobs.runtime.command_line import main
from jobs.runtime.datasets import map_parts
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage

STAGE = "item_embeddings"
BATCH_ITEMS = 1024
"""Items embedded at once; each distinct phrase of them is encoded once."""


class Embed:
    """Turn a part of `items`, with its interests and labels, into one of `item_embeddings`; the encoders are loaded once."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store, self.cluster = config.embeddings, store, config.cluster
        self.device = "cuda" if self.cluster.use_gpu else "cpu"
        self.encode = self.load_encoder()
        images = self.config.image_encoder
        self.encode_images = load_image_encoder(images, self.device) if images.name else None
        self.image_rules = image_rules(config, store)

    def load_encoder(self) -> Encode:
        """Load what turns texts into vectors."""
        import torch

        torch.set_num_threads(self.cluster.encode_threads)
        return load_encoder(self.config.encoder, self.device, self.cluster.encode_batch_size)

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Embed a part."""
        for batch in iter_aligned(self.store, ("items", "interests", "interest_labels"), part, BATCH_ITEMS):
            yield STAGE, self.embed(*batch)

    def embed(self, items: pa.Table, interests: pa.Table, labels: pa.Table) -> pa.Table:
        """Embed some items."""
        found, given = flat_interests(interests), flat_interests(labels)
        if not found.select(["row", "interest"]).equals(given.select(["row", "interest"])):
            raise ValueError(f"{self.store.uri('interest_labels')}: not the labels of interests; run jobs.label_interests again")
        vectors = item_vectors(
            item_texts(items),
            found["interest"].to_pylist(),
            np.asarray(found["row"]),
            np.asarray(found["confidence"].fill_null(1.0)),
            np.asarray(given["label"]) == 1,
            encode=self.encode,
            interests=self.config.interests,
            interest_weight=self.config.interest_weight,
            counted=found_without(found["miners"], left_out) if (left_out := self.config.without_miners) else None,
        )
        columns = {
            "item_id": items["item_id"],
            "embedding": _lists(vectors.embedding, np.ones(len(items), bool)),
            "interest_embedding": _lists(vectors.interest_embedding, vectors.has_trusted),
            "text_only": vectors.text_only,
            "text_embedding": _lists(vectors.text, np.ones(len(items), bool)),
        }
        if self.encode_images:
            shown = show_images(items["image_uri"].to_pylist(), self.image_rules)
            columns["image_embedding"] = _lists(*image_vectors([image.url for image in shown], self.encode_images))
        return conform(STAGE, pa.table(columns), STAGE)


def _lists(vectors: np.ndarray, present: np.ndarray) -> pa.Array:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pc.if_else(pa.array(present), lists.cast(pa.list_(pa.float32())), pa.scalar(None, pa.list_(pa.float32())))


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `item_embeddings` with Ray; an item without chosen interests falls back to its text, counted."""
    chosen = config.embeddings

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        num_items = artifacts.require(store, "items").rows or 0
        log(STAGE, f"{num_items} items, encoder {chosen.encoder.name}, interests {chosen.interests}")
        rows = map_parts(config, store, Embed, parts_of(store, "item"), [STAGE])[STAGE]
        parts = artifacts.open_parts(store.uri(STAGE))
        without_trusted = parts.count_rows(filter=pc.field("interest_embedding").is_null())
        fallbacks = parts.count_rows(filter=pc.field("text_only"))
        dim = len(parts.head(1, columns=["embedding"])["embedding"][0])
        facts = {"dim": dim, "num_text_only": fallbacks, "num_without_trusted_interests": without_trusted}
        facts[STARTS] = part_starts(store, "items")
        if chosen.image_encoder.name:
            facts["num_without_image"] = parts.count_rows(filter=pc.field("image_embedding").is_null())
        return {STAGE: Output(rows, facts=facts)}

    models: dict[str, ModelConfig] = {"embeddings.encoder": chosen.encoder}
    models |= {"embeddings.image_encoder": chosen.image_encoder} if chosen.image_encoder.name else {}
    return run_stage(
        config,
        options,
        outputs=[STAGE],
        sections=["embeddings"],
        models=models,
        inputs=["items", "interests", "interest_labels"],
        build=build,
    )


if __name__ == "__main__":
    main(run)
