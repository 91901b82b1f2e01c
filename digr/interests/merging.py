"""Merge the answers of several miners about each owner into rows of the `interests` table.

Phrases of different miners with close vectors count as one interest. Phrases of the same miner never merge, because each
miner's list is already unique.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr.interests.parsing import parse_response
from digr.models.encoders import Encode
from digr.tables import Owner, nest_interests


class Mined(NamedTuple):
    """One interest that one miner named."""

    miner: str
    interest: str
    confidence: float | None


class Merged(NamedTuple):
    """One interest of an owner: `confidence` is the mean over the miners that found it, `consensus` their share."""

    interest: str
    confidence: float | None
    miners: list[str]
    consensus: float


def latest_responses(responses: pa.Table) -> pa.Table:
    """Keep one row per request: the last "ok" one, else the last.

    A ledger holds a request twice after a retry, or if a killed worker's batch was run again.
    """
    usable = pc.equal(responses["status"], "ok").combine_chunks().to_numpy(zero_copy_only=False)
    digests = responses["request_digest"].combine_chunks().dictionary_encode()
    codes = digests.indices.to_numpy()
    order = np.lexsort((np.arange(len(codes)), usable, codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True)[: len(order)]
    return responses.take(pa.array(np.sort(order[last])))


def merge_owner(mined: Sequence[Mined], num_miners: int, vectors: dict[str, np.ndarray], similarity: float) -> list[Merged]:
    """Cluster one owner's mined interests across miners, strongest first.

    Each phrase, strongest first, joins the nearest cluster with cosine at least `similarity` and no phrase of the same miner,
    or starts a new cluster. A cluster keeps its first phrase. Ranked by mean confidence times consensus; a missing confidence
    counts as 0.5.

    Args:
        mined: interests of all miners, unique per miner.
        num_miners: number of miners that were asked.
        vectors: phrase -> unit vector; a phrase without a vector merges only with an equal one.
        similarity: least cosine of phrases that merge, in [0, 1].
    """
    clusters: list[list[Mined]] = []
    for entry in sorted(mined, key=lambda entry: -_strength(entry.confidence)):
        best, best_cosine = None, similarity
        for cluster in clusters:
            if any(other.miner == entry.miner for other in cluster):
                continue
            founder = cluster[0].interest
            if founder == entry.interest:
                best = cluster
                break
            if founder in vectors and entry.interest in vectors:
                cosine = float(vectors[founder] @ vectors[entry.interest])
                if cosine >= best_cosine:
                    best, best_cosine = cluster, cosine
        if best is None:
            clusters.append([entry])
        else:
            best.append(entry)
    merged = [_as_one(cluster, num_miners) for cluster in clusters]
    return sorted(merged, key=lambda one: (-_strength(one.confidence) * one.consensus, one.interest))


def _strength(confidence: float | None) -> float:
    return 0.5 if confidence is None else confidence


def _as_one(cluster: list[Mined], num_miners: int) -> Merged:
    known = [entry.confidence for entry in cluster if entry.confidence is not None]
    mean = sum(known) / len(known) if known else None
    return Merged(cluster[0].interest, mean, sorted(entry.miner for entry in cluster), len(cluster) / num_miners)


def merge_responses(
    responses: pa.Table, owner: Owner, owner_ids: pa.Array, encode: Encode, *, similarity: float, max_interests: int
) -> pa.Table:
    """Return the `interests` rows of some owners, in order; an owner without interests has an empty list.

    `caption` is the reasoning of a miner that saw only the image; its prompt asks it to note what is visible.

    `encode` is called only for owners for whom at least two miners found different phrases.

    Args:
        responses: all rows of `interest_responses` about these owners, one per request. "truncated" ones count with their
            complete interests; a miner without a usable answer counts as asked, and so lowers the consensus.
        similarity: least cosine at which phrases of two miners are one interest.
        max_interests: strongest interests kept per owner.
    """
    mined: dict[str, list[Mined]] = {}
    asked: dict[str, set[str]] = {}
    captions: dict[str, str] = {}
    for row in responses.select(["owner_id", "miner", "response", "status", "modality"]).to_pylist():
        asked.setdefault(row["owner_id"], set()).add(row["miner"])
        if row["status"] in ("ok", "truncated"):
            found = [Mined(row["miner"], *pair) for pair in parse_response(row["response"]).interests]
            mined.setdefault(row["owner_id"], []).extend(found)
            if row["modality"] == "image" and (caption := _reasoning(row["response"])):
                captions.setdefault(row["owner_id"], caption)
    compared = [named for named in mined.values() if len({entry.miner for entry in named}) > 1]
    phrases = sorted({entry.interest for named in compared for entry in named})
    vectors = dict(zip(phrases, encode(phrases), strict=True)) if phrases else {}
    rows, merged = list[int](), list[Merged]()
    for row, owner_id in enumerate(owner_ids.to_pylist()):
        strongest = merge_owner(mined.get(owner_id, []), len(asked.get(owner_id, ())), vectors, similarity)[:max_interests]
        merged += strongest
        rows += [row] * len(strongest)
    fields = {name: [getattr(one, name) for one in merged] for name in Merged._fields}
    owners = {"owner": pa.array([owner] * len(owner_ids), pa.string()), "owner_id": owner_ids}
    owners["caption"] = pa.array([captions.get(owner_id) for owner_id in owner_ids.to_pylist()], pa.string())
    return nest_interests("interests", owners, np.array(rows, np.int64), fields)


def _reasoning(response: str) -> str | None:
    try:
        found = json.loads(response, strict=False)
    except (ValueError, RecursionError):
        return None
    reasoning = found.get("reasoning") if isinstance(found, dict) else None
    return " ".join(reasoning.split()) if isinstance(reasoning, str) else None
