"""Labels of interests, who gave them and how far the labelers agree, and the quality of an item they add up to (RLDI)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from jaxtyping import Float, Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.texts import item_texts
from digr.interests.prompts import user_requests

LABELERS = ("classifier", "judge", "behavioural")
NO_LABELER = "none"
"""`labeler` of an interest of which no labeler had an opinion; its probability and label are 0."""
MAX_TEXT_CHARS = 1200
_SURE = 1e-4
"""Probabilities are kept this far from 0 and 1 before their log-odds are averaged."""


def owner_texts(store: Store, owners: pa.Table) -> list[str]:
    """Return the text that each row's owner is labelled against: the item's text, or what the user was mined from, newest first.

    Args:
        owners: rows with owner and owner_id; users have training rows in `histories`.

    Raises:
        ValueError: an owner is not in the run's tables.
    """
    texts: dict[tuple[str, str], str] = {}
    kinds = owners.select(["owner", "owner_id"]).group_by(["owner", "owner_id"]).aggregate([])
    item_ids = kinds.filter(pc.equal(kinds["owner"], "item"))["owner_id"].to_pylist()
    user_ids = kinds.filter(pc.equal(kinds["owner"], "user"))["owner_id"].to_pylist()
    if item_ids:
        items = artifacts.read_table(store, "items", item_id=item_ids)
        shown = zip(items["item_id"].to_pylist(), item_texts(items, MAX_TEXT_CHARS), strict=True)
        texts |= {("item", item_id): text for item_id, text in shown}
    if user_ids:
        histories = artifacts.read_table(store, "histories", user_id=user_ids, split=["train"])
        chosen = set().union(*histories["history"].to_pylist())
        titles = artifacts.read_table(store, "items", ["item_id", "title"], item_id=chosen).to_pydict()
        requests = user_requests(histories, dict(zip(titles["item_id"], titles["title"], strict=True)), "", MAX_TEXT_CHARS)
        for user_id, text in zip(requests["owner_id"].to_pylist(), requests["text"].to_pylist(), strict=True):
            texts["user", user_id] = "\n".join(reversed(text.split("\n")))
    keys = list(zip(owners["owner"].to_pylist(), owners["owner_id"].to_pylist(), strict=True))
    missing = [key for key in keys if key not in texts]
    if missing:
        raise ValueError(
            f"{store.uri('interests')}: no text of {' '.join(missing[0])}; an input changed: mine again with --force"
        )
    return [texts[key] for key in keys]


def votes_of(interests: pa.Table, given: pads.Dataset, key: Sequence[str], read_by: str) -> Float[np.ndarray, " P"]:
    """Return the probability that a labeler gave each interest, NaN where it gave none.

    Args:
        given: rows with the key columns and probability, at most one per key with a probability.
        key: columns that say which interest a row is about.
        read_by: the key column by whose values rows are chosen while reading.
    """
    spoken = pads.field(read_by).isin(pc.unique(interests[read_by])) & pads.field("probability").is_valid()
    found = given.to_table([*key, "probability"], filter=spoken)
    place = pc.index_in(_joined(interests, key), _joined(found, key))
    return np.asarray(pc.fill_null(found["probability"].take(place), np.nan), np.float64)


def _joined(table: pa.Table, key: Sequence[str]) -> pa.Array:
    columns = [pc.cast(table[name], pa.string()) for name in key]
    return pc.binary_join_element_wise(*columns, "\x1f").combine_chunks()


def label_interests(
    interests: pa.Table, votes: Mapping[str, Float[np.ndarray, " P"]], combine: Literal["mean", "all", "any"], threshold: float
) -> pa.Table:
    """Return one row of `interest_labels` per row of `interests`, in their order.

    Args:
        votes: labeler -> probability of each interest, NaN where it has no opinion.
        combine: see `LabelsConfig.combine`.
        threshold: probability from which a label is 1.
    """
    given = np.stack([votes[name] for name in votes])
    silent = np.isnan(given)
    probability = combined_probability(given, combine)
    names = np.array([*votes, ""], dtype=object)
    spoke, kind = np.unique(~silent, axis=1, return_inverse=True)
    labelers = ["+".join(names[:-1][column]) or NO_LABELER for column in spoke.T]
    columns = {
        "probability": pa.array(probability, pa.float64()),
        "label": pa.array((probability >= threshold).astype(np.int8)),
        "labeler": pa.DictionaryArray.from_arrays(kind.reshape(-1).astype(np.int32), labelers or [NO_LABELER]).cast(pa.string()),
    }
    for name, values in votes.items():
        columns[f"{name}_probability"] = pa.array(values, pa.float64(), mask=np.isnan(values))
    kept = interests.select(["owner", "owner_id", "rank", "interest"])
    return pa.table(dict(zip(kept.column_names, kept.columns, strict=True)) | columns)


def combined_probability(given: Float[np.ndarray, "J P"], combine: Literal["mean", "all", "any"]) -> Float[np.ndarray, " P"]:
    """Combine the probabilities of J labelers, NaN where one has no opinion; 0 where none has.

    "mean" averages log-odds (a logarithmic opinion pool), so one very sure labeler weighs more than an unsure one.
    """
    silent = np.isnan(given)
    if combine == "mean":
        sure = np.clip(np.where(silent, 0.5, given), _SURE, 1 - _SURE)
        count = (~silent).sum(axis=0)
        odds = np.where(silent, 0.0, np.log(sure / (1 - sure))).sum(axis=0) / np.maximum(1, count)
        found = np.where(count == 1, np.where(silent, 0.0, given).sum(axis=0), 1 / (1 + np.exp(-odds)))
    else:
        found = np.where(silent, 1.0, given).min(axis=0) if combine == "all" else np.where(silent, 0.0, given).max(axis=0)
    return np.where(silent.all(axis=0), 0.0, found)


def labeler_facts(batches: Iterable[pa.RecordBatch], labelers: Sequence[str], threshold: float) -> dict[str, Any]:
    """Return how many interests each labeler had an opinion of and trusted, and how far each two of them agree.

    Agreement is Cohen's kappa of the labels and Pearson's correlation of the probabilities, over what both had an opinion of;
    None where one of them always says the same. One pass, in constant memory.

    Args:
        batches: rows of `interest_labels`.
        threshold: probability from which a labeler counts as trusting.
    """
    pairs = list(combinations(range(len(labelers)), 2))
    spoken, trusted, sums = np.zeros(len(labelers)), np.zeros(len(labelers)), np.zeros((len(pairs), 9))
    for batch in batches:
        columns = [pc.fill_null(batch[f"{name}_probability"], np.nan) for name in labelers]
        given = np.stack([np.asarray(column, np.float64) for column in columns])
        spoken += (~np.isnan(given)).sum(axis=1)
        trusted += (given >= threshold).sum(axis=1)
        for place, (left, right) in enumerate(pairs):
            x, y = given[:, ~np.isnan(given[[left, right]]).any(axis=0)][[left, right]]
            a, b = x >= threshold, y >= threshold
            sums[place] += [len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y, a.sum(), b.sum(), (a == b).sum()]
    names = [" and ".join((labelers[left], labelers[right])) for left, right in pairs]
    by_labeler = {
        name: {"num_interests": int(count), "trusted_rate": float(yes / max(1, count))}
        for name, count, yes in zip(labelers, spoken, trusted, strict=True)
    }
    return {"labelers": by_labeler, "agreement": {name: _agreement(row) for name, row in zip(names, sums, strict=True)}}


def _agreement(sums: Float[np.ndarray, " 9"]) -> dict[str, float | None]:
    num, x, y, xx, yy, xy, a, b, same = sums
    if num == 0:
        return {"num_interests": 0}
    by_chance = (a * b + (num - a) * (num - b)) / num**2
    spread = (xx - x * x / num) * (yy - y * y / num)
    return {
        "num_interests": int(num),
        "kappa": float((same / num - by_chance) / (1 - by_chance)) if by_chance < 1 else None,
        "correlation": float((xy - x * y / num) / np.sqrt(spread)) if spread > 1e-12 else None,
    }


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


def quality_histogram(batches: Iterable[pa.RecordBatch], num_bins: int = 10) -> dict[str, Any]:
    """Return num_without_interests, and of the other items the mean quality and the counts of equal-width bins over [0, 1].

    Args:
        batches: quality and num_interests of `item_quality`.
    """
    without, total, counts = 0, 0.0, np.zeros(num_bins, np.int64)
    for batch in batches:
        quality = np.asarray(batch["quality"])[np.asarray(batch["num_interests"]) > 0]
        without += len(batch) - len(quality)
        total += float(quality.sum())
        counts += np.histogram(quality, num_bins, (0, 1))[0]
    return {
        "num_without_interests": without,
        "mean_quality": total / max(1, int(counts.sum())),
        "quality_counts": counts.tolist(),
    }
