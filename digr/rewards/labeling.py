"""Labels of interests, the agreement of labelers, and the interest quality of an item (RLDI)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from digr.artifacts import Store
from digr.data.texts import item_texts
from digr.interests.item_lines import ItemLines, history_texts
from digr.partitions import Part, iter_aligned, iter_part, iter_users
from digr.tables import flat_interests, nest_interests

LABELERS = ("classifier", "judge", "behavioural")
MAX_TEXT_CHARS = 1200
BATCH_ROWS = 16_384
"""Rows of `histories` read at once."""
_SURE = 1e-4
"""Probabilities are clipped to this distance from 0 and 1 before their log-odds are averaged."""


def labelled_texts(store: Store, part: Part, items: ItemLines | None, batch_rows: int) -> Iterator[tuple[pa.Table, list[str]]]:
    """Stream a part of `interests` with the text that each owner is labelled against, an item's text or a user's history.

    An item's text has the caption of its image, if a miner wrote one. A user's text has the titles of the training items,
    newest first; it is empty for a user without training rows.

    Args:
        items: titles of all items, for a part of users.
        batch_rows: owners per batch.

    Raises:
        ValueError: the owners of `interests` and `items` differ in this part.
    """
    if part.owner == "item":
        for interests, own in iter_aligned(store, ("interests", "items"), part, batch_rows):
            yield interests, item_texts(own, MAX_TEXT_CHARS, interests["caption"].to_pylist())
        return
    assert items is not None, "users are labelled against the titles of their items"
    known: dict[str, str] = {}
    for histories in iter_users(store, "histories", part, BATCH_ROWS, ["user_id", "split", "history", "target"]):
        users, made = history_texts(histories, items, MAX_TEXT_CHARS, newest_first=True)
        known |= zip(users.to_pylist(), made, strict=True)
    for interests in iter_part(store, "interests", part, batch_rows):
        yield interests, [known.get(user, "") for user in interests["owner_id"].to_pylist()]


def label_interests(
    interests: pa.Table, votes: Mapping[str, Float[np.ndarray, " P"]], combine: Literal["mean", "all", "any"], threshold: float
) -> pa.Table:
    """Return rows of `interest_labels`: the rows of `interests`, P interests in all, with their labels and each owner's quality.

    Args:
        votes: labeler -> probability of each interest, NaN where it has no opinion.
        combine: see `LabelsConfig.combine`.
        threshold: a label is 1 if the probability is at least this.
    """
    flat = flat_interests(interests)
    given = np.stack([votes[name] for name in votes])
    silent = np.isnan(given)
    probability = combined_probability(given, combine)
    label = (probability >= threshold).astype(np.int8)
    # each set of labelers as a number, a bit for each
    spoke = 2 ** np.arange(len(votes)) @ ~silent
    named = [[name for bit, name in enumerate(votes) if number >> bit & 1] for number in range(2 ** len(votes))]
    fields = {
        "interest": flat["interest"],
        "probability": probability,
        "label": label,
        "labelers": pa.array(named, pa.list_(pa.string())).take(pa.array(spoke)),
    }
    for name, values in votes.items():
        fields[f"{name}_probability"] = pa.array(values, pa.float64(), mask=np.isnan(values))
    row = np.asarray(flat["row"])
    quality = interest_quality(row, label, np.asarray(flat["confidence"].fill_null(1.0)), len(interests))
    owners = {"owner": interests["owner"], "owner_id": interests["owner_id"], "quality": quality}
    return nest_interests("interest_labels", owners, row, fields)


def combined_probability(given: Float[np.ndarray, "J P"], combine: Literal["mean", "all", "any"]) -> Float[np.ndarray, " P"]:
    """Combine the probabilities of J labelers; NaN means no opinion, and the result is 0 if no labeler has one.

    "mean" averages log-odds (a logarithmic opinion pool), so a very sure labeler weighs more than an unsure one.
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


class LabelerCounts:
    """Counts how many interests each labeler judged and trusted, and how far each pair of labelers agrees.

    Agreement is Cohen's kappa of the labels and Pearson's correlation of the probabilities, over interests that both judged;
    None if one of them always gives the same value.
    """

    def __init__(self, labelers: Sequence[str], threshold: float) -> None:
        self.labelers, self.threshold = labelers, threshold
        self.pairs = list(combinations(range(len(labelers)), 2))
        self.spoken, self.trusted = np.zeros(len(labelers)), np.zeros(len(labelers))
        self.sums = np.zeros((len(self.pairs), 9))

    def add(self, flat: pa.Table) -> None:
        """Count the rows of `interest_labels` that `flat_interests` made flat."""
        columns = [pc.fill_null(flat[f"{name}_probability"], np.nan) for name in self.labelers]
        given = np.stack([np.asarray(column, np.float64) for column in columns])
        self.spoken += (~np.isnan(given)).sum(axis=1)
        self.trusted += (given >= self.threshold).sum(axis=1)
        for place, (left, right) in enumerate(self.pairs):
            x, y = given[:, ~np.isnan(given[[left, right]]).any(axis=0)][[left, right]]
            a, b = x >= self.threshold, y >= self.threshold
            self.sums[place] += [len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y, a.sum(), b.sum(), (a == b).sum()]

    def facts(self) -> dict[str, Any]:
        """Return the facts for the manifest."""
        names = [" and ".join((self.labelers[left], self.labelers[right])) for left, right in self.pairs]
        by_labeler = {
            name: {"num_interests": int(count), "trusted_rate": float(yes / max(1, count))}
            for name, count, yes in zip(self.labelers, self.spoken, self.trusted, strict=True)
        }
        agreement = {name: _agreement(row) for name, row in zip(names, self.sums, strict=True)}
        return {"labelers": by_labeler, "agreement": agreement}


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


def interest_quality(
    row: Int[np.ndarray, " P"], label: Int[np.ndarray, " P"], confidence: Float[np.ndarray, " P"], num_owners: int
) -> Float[np.ndarray, " N"]:
    """Return each owner's quality q = sum(w * y) / sum(w).

    Quality is 0 for an owner without interests or whose confidences are all 0.

    Args:
        row: owner of each interest, in [0, N).
        label: y, 0 or 1.
        confidence: w, the miner's confidence, at least 0; pass 1 if the miner gave none.
        num_owners: N.
    """
    weight = np.bincount(row, weights=confidence, minlength=num_owners)
    trusted = np.bincount(row, weights=confidence * label, minlength=num_owners)
    return np.divide(trusted, weight, out=np.zeros(num_owners), where=weight > 0)


def label_facts(batches: Iterable[pa.RecordBatch], labelers: Sequence[str], threshold: float) -> dict[str, Any]:
    """Return the manifest's facts about the labels, in one pass and constant memory.

    These are the number of interests, also of users alone, the share that is trusted, the facts of `LabelerCounts`, and for
    items num_without_interests, and the mean quality of the others with its counts in ten equal bins over [0, 1].

    Args:
        batches: rows of `interest_labels`.
        threshold: a labeler trusts an interest if its probability is at least this.
    """
    counts, num, trusted, of_users = LabelerCounts(labelers, threshold), 0, 0, 0
    without, total, bins = 0, 0.0, np.zeros(10, np.int64)
    for batch in batches:
        flat, is_item = flat_interests(batch), np.asarray(pc.equal(batch["owner"], "item"))
        counts.add(flat)
        num, trusted = num + len(flat), trusted + (pc.sum(flat["label"]).as_py() or 0)
        of_users += pc.sum(pc.equal(flat["owner"], "user")).as_py() or 0
        has_interests = np.asarray(batch["interests"].value_lengths()) > 0
        quality = np.asarray(batch["quality"])[is_item & has_interests]
        without += int((is_item & ~has_interests).sum())
        total += float(quality.sum())
        bins += np.histogram(quality, len(bins), (0, 1))[0]
    facts: dict[str, Any] = {"num_interests": num, "num_interests_of_users": of_users, "trusted_rate": trusted / max(1, num)}
    facts |= {"num_without_interests": without, "mean_quality": total / max(1, int(bins.sum())), "quality_counts": bins.tolist()}
    return facts | counts.facts()
