"""Labels of interests, and the quality of an item they add up to (RLDI)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int


class Classify(Protocol):
    """Give the probability that each interest is specific and grounded in its text."""

    def __call__(self, interests: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " P"]: ...


def label_interests(
    interests: pa.Table, item_ids: pa.Array, texts: Sequence[str], *, classify: Classify, threshold: float
) -> pa.Table:
    """Return one row of `interest_labels` per row of `interests`, ordered by owner_id and rank.

    Args:
        interests: rows of the `interests` table whose owners are among `item_ids`.
        item_ids: the items.
        texts: one text per item.
        classify: (interests, texts) to calibrated probabilities.
        threshold: probability from which a label is 1.
    """
    ordered = interests.sort_by([("owner_id", "ascending"), ("rank", "ascending")])
    rows = pc.index_in(ordered["owner_id"], item_ids).to_pylist()
    phrases = ordered["interest"].to_pylist()
    probability = classify(phrases, [texts[row] for row in rows]) if phrases else np.zeros(0)
    columns = {
        "probability": pa.array(probability, pa.float64()),
        "label": pa.array((probability >= threshold).astype(np.int8)),
        "labeler": pa.array(["classifier"] * len(phrases), pa.string()),
    }
    kept = ordered.select(["owner", "owner_id", "rank", "interest"])
    return pa.table(dict(zip(kept.column_names, kept.columns, strict=True)) | columns)


def item_quality(
    item_index: Int[np.ndarray, " P"], label: Int[np.ndarray, " P"], confidence: Float[np.ndarray, " P"], num_items: int
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Return each item's quality q = sum(w * y) / sum(w) and its number of interests.

    Quality is 0 for an item without interests or whose confidences are all 0.

    Args:
        item_index: item of each interest.
        label: y, 0 or 1.
        confidence: w, the miner's confidence, at least 0; give 1 where the miner named none.
        num_items: N.
    """
    weight = np.bincount(item_index, weights=confidence, minlength=num_items)
    trusted = np.bincount(item_index, weights=confidence * label, minlength=num_items)
    quality = np.divide(trusted, weight, out=np.zeros(num_items), where=weight > 0)
    return quality, np.bincount(item_index, minlength=num_items)
