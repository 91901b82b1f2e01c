"""Pairs for the interest classifier: mined interests of items, and for held-out items swapped and blurred phrases too (RLDI).

No labels are needed: an interest is positive for the item that it was mined from. Negatives of held-out items test whether a
phrase is grounded in the item (swaps) and whether it is specific (blurred).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from digr import artifacts
from digr.artifacts import Store
from digr.config.interests import ClassifierConfig
from digr.data.texts import item_texts
from digr.models.encoders import Encode
from digr.partitions import iter_aligned, parts_of
from digr.tables import flat_interests

MINED, FAR_SWAP, NEAR_SWAP, BLURRED = KINDS = ("mined", "far_swap", "near_swap", "blurred")
SHARES = {MINED: 0.5, FAR_SWAP: 0.15, NEAR_SWAP: 0.2, BLURRED: 0.15}
"""Share of each kind among the pairs; less if a kind runs out of candidates."""
INTERESTS_PER_ITEM = 4
"""About how many interests an item has; determines how many items are read."""
BATCH_ITEMS = 16_384
"""Items read per batch."""
NEIGHBOURS = 10
"""Number of most similar items from which a near swap is drawn."""
NEAR_DUPLICATE = 0.75
"""A phrase with at least this cosine to one of the item's own interests is not used as a negative."""

_GENERIC_HEADS = ("everyday", "general", "daily", "practical", "useful", "household", "basic", "common", "various", "personal")
_GENERIC_TAILS = ("use", "needs", "tasks", "projects", "convenience", "purposes", "products", "activities", "shopping")


class Pairs(NamedTuple):
    """P pairs of an item and a phrase."""

    item_index: Int[np.ndarray, " P"]
    phrases: list[str]
    label: Int[np.ndarray, " P"]
    kinds: list[str]


class PairTables(NamedTuple):
    """Mined pairs for training (item_id, text, phrase) and pairs of held-out items of every kind, in the order of item_id.

    Held-out pairs also have label, kind and half: the calibration of one half of the items is evaluated on the other.
    """

    train: pa.Table
    held_out: pa.Table


def pair_tables(store: Store, config: ClassifierConfig, *, encode: Encode, rng: np.random.Generator) -> PairTables:
    """Draw the pairs of a run from about max_pairs / 4 items, chosen by the hash of their ids.

    A phrase is in both tables only if it was mined from items of both.

    Args:
        encode: encodes texts and phrases of held-out items, to find their neighbours.

    Raises:
        ValueError: the training or the held-out side has fewer than two items with interests.
    """
    share = min(1.0, config.max_pairs / INTERESTS_PER_ITEM / max(1, artifacts.require(store, "items").rows or 0))
    items, interests = _sampled_items(store, share)
    if config.judged_run:
        interests = without_rejected(interests, Store(config.judged_run))
    ids, texts = items["item_id"].to_pylist(), np.array(item_texts(items, captions=items["caption"].to_pylist()), dtype=object)
    item_index = pc.index_in(interests["owner_id"], items["item_id"].combine_chunks()).to_numpy()
    phrases = np.array(interests["interest"].to_pylist(), dtype=object)
    held_out = id_numbers(ids, "held out") < config.valid_share
    rows = held_out[item_index] if len(item_index) else np.zeros(0, bool)
    for side, chosen in (("train", ~rows), ("held-out", rows)):
        found = len(np.unique(item_index[chosen]))
        if found < 2:
            raise ValueError(
                f"{store.uri('interests')}: {found} {side} items with interests, the classifier needs at least 2; "
                f"check what the miners returned, or set classifier.valid_share (now {config.valid_share})"
            )
    trained = rng.permutation(np.flatnonzero(~rows))[: config.max_pairs]
    train = _pair_table(ids, texts, item_index[trained], phrases[trained])
    own_items, distinct = np.unique(item_index[rows]), np.unique(phrases[rows])
    pairs = build_pairs(
        np.searchsorted(own_items, item_index[rows]),
        np.searchsorted(distinct, phrases[rows]),
        distinct.tolist(),
        encode(texts[own_items].tolist()),
        encode(distinct.tolist()),
        num_pairs=min(2000, max(16, round(config.max_pairs * config.valid_share / (1 - config.valid_share)))),
        rng=rng,
    )
    measured = _pair_table(ids, texts, own_items[pairs.item_index], pairs.phrases)
    half = (id_numbers(ids, "calibrate") < 0.5)[own_items[pairs.item_index]]
    columns = {"label": pairs.label, "kind": pa.array(pairs.kinds, pa.string()), "half": half.astype(np.int8)}
    for name, values in columns.items():
        measured = measured.append_column(name, pa.array(values))
    return PairTables(train.sort_by([("item_id", "ascending"), ("phrase", "ascending")]), measured.sort_by("item_id"))


def _sampled_items(store: Store, share: float) -> tuple[pa.Table, pa.Table]:
    """Return a share of the items with captions, chosen by the hash of their ids, and a row for each of their interests."""
    sampled = []
    for part in parts_of(store, "item"):
        for items, interests in iter_aligned(store, ("items", "interests"), part, BATCH_ITEMS):
            chosen = pa.array(id_numbers(items["item_id"].to_pylist(), "sample") < share)
            items, interests = items.filter(chosen), interests.filter(chosen)
            captioned = items.append_column("caption", interests["caption"])
            sampled.append((captioned, flat_interests(interests).drop_columns("row")))
    items, interests = zip(*sampled, strict=True)
    return pa.concat_tables(items), pa.concat_tables(interests)


def without_rejected(interests: pa.Table, judged: Store) -> pa.Table:
    """Return the items' interests without those to which the judge of another run gave a probability below 0.5.

    Raises:
        ValueError: no judge labelled any interest there.
    """
    columns = ["owner_id", "interest"]
    labels = flat_interests(artifacts.read_table(judged, "interest_labels", owner=["item"]))
    if not len(labels) or labels["judge_probability"].null_count == len(labels):
        raise ValueError(
            f"classifier.judged_run: {judged.uri('interest_labels')}: found no judge_probability; choose a run whose "
            f"labels.labelers contain 'judge', or leave the field empty"
        )
    rejected = labels.filter(pc.less(labels["judge_probability"], 0.5)).select(columns)
    kept = interests.append_column("place", pa.array(np.arange(len(interests)))).select(["place", *columns])
    places = kept.join(rejected, columns, join_type="left anti")["place"]
    return interests.take(pa.array(np.sort(places.to_numpy())))


def _pair_table(ids: Sequence[str], texts: np.ndarray, rows: np.ndarray, phrases: Sequence[str] | np.ndarray) -> pa.Table:
    item_ids = pa.array([ids[row] for row in rows], pa.string())
    return pa.table({"item_id": item_ids, "text": pa.array(texts[rows], pa.string()), "phrase": pa.array(phrases, pa.string())})


def id_numbers(item_ids: Sequence[str], salt: str) -> Float[np.ndarray, " N"]:
    """Map ids to fixed uniform numbers in [0, 1), independent for each salt.

    A number depends only on the id and the salt, so an item stays on its side (training or held-out) when the catalogue grows.
    """
    digests = [hashlib.blake2b(f"{salt}:{item}".encode(), digest_size=8).digest() for item in item_ids]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.float64) / 2**64


def build_pairs(
    item_index: Int[np.ndarray, " M"],
    phrase_index: Int[np.ndarray, " M"],
    phrases: Sequence[str],
    item_vectors: Float[np.ndarray, "N D"],
    phrase_vectors: Float[np.ndarray, "U D"],
    *,
    num_pairs: int,
    rng: np.random.Generator,
) -> Pairs:
    """Draw about `num_pairs` pairs, half of them mined.

    A near swap is an interest of exactly one of the item's nearest neighbours; an interest of several is likely true of the
    item too. No negative equals or nearly duplicates one of the item's own interests.

    Args:
        item_index: item of each of M mined interests, an index into `item_vectors`.
        phrase_index: phrase of each mined interest, an index into `phrases`.
        phrases: U distinct phrases.
        item_vectors: unit vectors of the items' texts.
        phrase_vectors: unit vectors of the phrases.
    """
    wanted = {kind: round(share * num_pairs) for kind, share in SHARES.items()}
    chosen = rng.permutation(len(item_index))[: wanted[MINED]]
    own = own_phrases(item_index, phrase_index, len(item_vectors))
    drawn = {MINED: (item_index[chosen], phrase_index[chosen])}
    items = rng.permutation(np.resize(np.unique(item_index), 3 * num_pairs))
    far = rng.choice(phrase_index, len(items))
    drawn[FAR_SWAP] = _grounded_elsewhere(items, far, own, phrase_vectors, wanted[FAR_SWAP])
    near_items, near = _near_candidates(item_index, phrase_index, item_vectors, rng)
    drawn[NEAR_SWAP] = _grounded_elsewhere(near_items, near, own, phrase_vectors, wanted[NEAR_SWAP])
    blurred = blur([phrases[row] for row in rng.choice(phrase_index, wanted[BLURRED])], phrases, rng)
    parts = [(kind, rows, [phrases[row] for row in texts]) for kind, (rows, texts) in drawn.items()]
    parts.append((BLURRED, items[: len(blurred)], blurred))
    kinds = [kind for kind, rows, _ in parts for _ in rows]
    return Pairs(
        np.concatenate([rows for _, rows, _ in parts]),
        [text for _, _, texts in parts for text in texts],
        np.array([kind == MINED for kind in kinds], np.int64),
        kinds,
    )


def blur(interests: Sequence[str], vocabulary: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Make generic phrases: half keep only the most frequent word of an interest, half keep none.

    Args:
        interests: phrases to blur.
        vocabulary: phrases in which the frequency of words is counted.
    """
    words, counts = np.unique(" ".join(vocabulary).split(), return_counts=True)
    frequency = dict(zip(words.tolist(), counts.tolist(), strict=True))
    blurred = []
    for interest in interests:
        head, tail = str(rng.choice(_GENERIC_HEADS)), str(rng.choice(_GENERIC_TAILS))
        common = max((word for word in interest.split() if len(word) > 3), key=lambda word: frequency.get(word, 0), default="")
        blurred.append(f"{head} {common} {tail}" if common and rng.random() < 0.5 else f"{head} {tail}")
    return blurred


def own_phrases(item_index: Int[np.ndarray, " M"], phrase_index: Int[np.ndarray, " M"], num_items: int) -> Int[np.ndarray, "N R"]:
    """Return the phrases of each item, padded with -1."""
    order = np.argsort(item_index, kind="stable")
    counts = np.bincount(item_index, minlength=num_items)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    own = np.full((num_items, max(1, int(counts.max(initial=0)))), -1)
    own[item_index[order], place] = phrase_index[order]
    return own


def _grounded_elsewhere(
    items: np.ndarray, phrases: np.ndarray, own: Int[np.ndarray, "N R"], vectors: np.ndarray, num: int, *, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first `num` distinct candidates that are unlike every own interest of their item."""
    _, first = np.unique(np.stack([items, phrases]), axis=1, return_index=True)
    items, phrases = items[np.sort(first)], phrases[np.sort(first)]
    kept: list[np.ndarray] = []
    for start in range(0, len(items), chunk):
        rows = slice(start, start + chunk)
        mine = own[items[rows]]
        cosine = np.einsum("pd,prd->pr", vectors[phrases[rows]], vectors[mine])
        kept.append(start + np.flatnonzero(np.where(mine >= 0, cosine, -1).max(1) < NEAR_DUPLICATE))
        if sum(map(len, kept)) >= num:
            break
    chosen = np.concatenate(kept)[:num] if kept else np.zeros(0, int)
    return items[chosen], phrases[chosen]


def _near_candidates(
    item_index: np.ndarray, phrase_index: np.ndarray, vectors: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (item, phrase of exactly one of its neighbours) in random order."""
    mined = np.unique(item_index)
    own = own_phrases(item_index, phrase_index, len(vectors))
    num = min(NEIGHBOURS, len(mined) - 1)
    if num < 1:
        return np.zeros(0, int), np.zeros(0, int)
    found = []
    for rows in np.array_split(mined, max(1, len(mined) // 1024)):
        cosine = vectors[rows] @ vectors[mined].T
        cosine[rows[:, None] == mined[None]] = -np.inf
        nearest = mined[np.argpartition(-cosine, num - 1, axis=1)[:, :num]]
        candidates = own[nearest].reshape(len(rows), -1)
        items = np.repeat(rows, candidates.shape[1])
        pair, count = np.unique(np.stack([items, candidates.ravel()]), axis=1, return_counts=True)
        found.append(pair[:, (count == 1) & (pair[1] >= 0)])
    pairs = np.concatenate(found, axis=1)
    return tuple(pairs[:, rng.permutation(pairs.shape[1])])
