"""Semantic IDs for items that are added after the run, by its frozen quantiser; those of other items do not change."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int32

from digr import artifacts
from digr.artifacts import Store
from digr.config.interests import EmbeddingsConfig
from digr.data.texts import item_texts
from digr.models.encoders import Encode
from digr.sids.assignment import Disambiguation, nearest_codes
from digr.sids.building import RETIRED
from digr.sids.extension import extend_sids
from digr.sids.fitting import Quantiser, load_quantiser
from digr.sids.fusion import Fusion, load_fusion
from digr.sids.item_vectors import item_vectors
from digr.sids.trie import codes_of


class Extender(NamedTuple):
    """The quantiser of a run's semantic IDs, and its inputs."""

    quantiser: Quantiser
    fusion: Fusion | None
    embeddings: EmbeddingsConfig
    disambiguation: Disambiguation
    seed: int
    level_sizes: tuple[int, ...]
    """Number of codes per level that the policy knows, including the suffix level."""
    retired: Int32[np.ndarray, "R L"]
    """Retired semantic IDs, which are never assigned again."""


def load_extender(store: Store) -> Extender:
    """Load what a run's semantic IDs were made with.

    Raises:
        ValueError: an artifact is missing; the message names the job that makes it.
    """
    sids = artifacts.require(store, "item_sids")
    level_sizes = tuple(sids.facts["level_sizes"])
    with artifacts.local_files(store, "quantiser") as folder:
        quantiser, fusion = load_quantiser(folder), load_fusion(folder)
        retired = pq.read_table(folder / RETIRED) if (folder / RETIRED).is_file() else None
    return Extender(
        quantiser=quantiser,
        fusion=fusion,
        embeddings=EmbeddingsConfig.model_validate(artifacts.require(store, "item_embeddings").config["embeddings"]),
        disambiguation=sids.config["sids"]["disambiguation"],
        seed=sids.seed,
        level_sizes=level_sizes,
        retired=codes_of(retired, len(level_sizes)) if retired is not None else np.zeros((0, len(level_sizes)), np.int32),
    )


def new_vectors(
    extender: Extender, items: pa.Table, interests: Sequence[Sequence[str]], encode: Encode
) -> Float[np.ndarray, "M D"]:
    """Make the vectors of new items in the same way as the run's, from text and trusted interests of confidence 1.

    Args:
        items: M rows of `items`.
        interests: trusted interests of each item.
    """
    phrases = [phrase for own in interests for phrase in own]
    vectors = item_vectors(
        item_texts(items),
        phrases,
        np.repeat(np.arange(len(interests)), [len(own) for own in interests]),
        np.ones(len(phrases)),
        np.ones(len(phrases), bool),
        encode=encode,
        interests=extender.embeddings.interests,
        interest_weight=extender.embeddings.interest_weight,
    ).embedding
    if extender.fusion is None:
        return vectors
    missing = np.full((len(vectors), len(extender.fusion.image_mean)), np.nan, np.float32)
    return extender.fusion(vectors, missing)


def sid_of_new_item(
    extender: Extender, existing: Sequence[Int32[np.ndarray, "_ L"]], vector: Float[np.ndarray, " D"]
) -> Int32[np.ndarray, " L"]:
    """Assign a semantic ID to one new item.

    Only SIDs that begin like the item's nearest codes, all but the last, can be equal to its SID or in its way.

    Args:
        existing: all SIDs of the version, in some tables one after another.

    Raises:
        ValueError: no free code is left that the policy knows.
    """
    levels = len(extender.level_sizes)
    begin = nearest_codes(extender.quantiser, vector[None])[0][0, :-1]
    taken = np.concatenate([_that_begin(codes, begin) for codes in (*existing, extender.retired)])
    added = extend_sids(extender.quantiser, taken, vector[None], disambiguation=extender.disambiguation, seed=extender.seed)
    if added.codes.shape[1] > levels or (added.codes[0] >= extender.level_sizes[: added.codes.shape[1]]).any():
        raise ValueError(
            f"item_sids: the policy knows no code for the new item's semantic ID {added.codes[0].tolist()} (level sizes "
            f"{list(extender.level_sizes)}); run the pipeline again with the item in the catalogue"
        )
    return np.pad(added.codes[0], (0, levels - added.codes.shape[1]), constant_values=-1)


def _that_begin(codes: Int32[np.ndarray, "N L"], begin: Int32[np.ndarray, " P"]) -> Int32[np.ndarray, "M L"]:
    """Return the SIDs that begin with some codes."""
    for level, code in enumerate(begin):
        codes = codes[codes[:, level] == code]
    return codes
