"""One vector per item from its text, its interests and its image (IEID, first half)."""

import base64
import io
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from digr.models.encoders import Encode, EncodeImages


class ItemVectors(NamedTuple):
    """Vectors of N items; rows without trusted interests have a zero `interest_embedding`."""

    embedding: Float[np.ndarray, "N D"]
    interest_embedding: Float[np.ndarray, "N D"]
    has_trusted: Bool[np.ndarray, " N"]
    text_only: Bool[np.ndarray, " N"]
    text: Float[np.ndarray, "N D"]


def item_vectors(
    texts: list[str],
    phrases: list[str],
    item_index: Int[np.ndarray, " P"],
    confidence: Float[np.ndarray, " P"],
    trusted: Bool[np.ndarray, " P"],
    *,
    encode: Encode,
    interests: Literal["none", "all", "trusted"],
    interest_weight: float,
    counted: Bool[np.ndarray, " P"] | None = None,
) -> ItemVectors:
    """Blend each item's text vector with the mean of its interests' vectors, all of unit length.

    The embedding is unit((1 - w) * text + w * unit(mean)); an item without chosen interests keeps its text vector.
    `interest_embedding` is always the unit mean of the trusted interests, whatever `interests` is: the reward reads it, and an
    ablation must change only the quantised vectors. Each distinct phrase is encoded once.

    Args:
        texts: one text per item, N of them.
        phrases: interests of all items, P of them, in any order.
        item_index: index into `texts` of each phrase's item.
        confidence: weight of a phrase in the mean, at least 0; phrases of weight 0 do not count.
        trusted: whether a phrase is labelled 1.
        encode: turns texts into unit vectors.
        interests: which phrases enter the embedding.
        interest_weight: w, in [0, 1].
        counted: whether a phrase may enter the embedding at all; None means all.
    """
    text = encode(texts)
    distinct, inverse = np.unique(np.array(phrases, dtype=object), return_inverse=True)
    vectors = encode(distinct.tolist())[inverse] if len(phrases) else np.zeros((0, text.shape[1]), np.float32)
    trusted_mean = _unit_means(vectors, item_index, confidence * trusted, len(texts))
    chosen = trusted_mean
    if interests != "trusted" or counted is not None:
        share: np.ndarray = np.zeros(len(phrases)) if interests == "none" else np.ones(len(phrases))
        share = share * (trusted if interests == "trusted" else 1) * (1 if counted is None else counted)
        chosen = _unit_means(vectors, item_index, confidence * share, len(texts))
    has_chosen = np.any(chosen != 0, axis=1, keepdims=True)
    blend = np.where(has_chosen, (1 - interest_weight) * text + interest_weight * chosen, text)
    return ItemVectors(_unit(blend), trusted_mean, np.any(trusted_mean != 0, axis=1), ~has_chosen[:, 0], text)


def image_vectors(urls: list[str | None], encode: EncodeImages) -> tuple[Float[np.ndarray, "M D"], Bool[np.ndarray, " M"]]:
    """Encode images, given as `data:` addresses or None.

    Returns one row per item (undefined for items without an image), and a mask of the items that have one.
    """
    images = [
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=["PNG"]).convert("RGB") for url in urls if url
    ]
    has = np.array([bool(url) for url in urls], bool)
    found = encode(images) if images else np.zeros((0, 1), np.float32)
    vectors = np.zeros((len(urls), found.shape[1]), np.float32)
    vectors[has] = found
    return vectors, has


def _unit_means(
    vectors: Float[np.ndarray, "P D"], item_index: Int[np.ndarray, " P"], weight: Float[np.ndarray, " P"], num_items: int
) -> Float[np.ndarray, "N D"]:
    sums = np.zeros((num_items, vectors.shape[1]), np.float32)
    np.add.at(sums, item_index, weight[:, None].astype(np.float32) * vectors)
    return _unit(sums)


def _unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Scale rows to length 1; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
