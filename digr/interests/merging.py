"""Merge what several miners said of an owner into the rows of the `interests` table.

Phrases of different miners whose vectors are close count as one interest; phrases of one miner never merge, since a
miner's own list is already unique.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr.interests.parsing import parse_response
from digr.models.encoders import Encode
from digr.tables import TABLES


class Mined(NamedTuple):
    """One interest that one miner named."""

    miner: str
    interest: str
    confidence: float | None


class Merged(NamedTuple):
    """One interest of an owner: `confidence` is the mean of the miners that have it, `consensus` their share."""

    interest: str
    confidence: float | None
    miners: list[str]
    consensus: float


def latest_responses(responses: pa.Table) -> pa.Table:
    """Keep one row per request: an "ok" one before any other, else the last.

    A ledger holds a request twice after a retry, or after a killed worker's batch was run again.
    """
    usable = pc.equal(responses["status"], "ok").combine_chunks().to_numpy(zero_copy_only=False)
    digests = responses["request_digest"].combine_chunks().dictionary_encode()
    codes = digests.indices.to_numpy()
    order = np.lexsort((np.arange(len(codes)), usable, codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True)[: len(order)]
    return responses.take(pa.array(np.sort(order[last])))


def merge_owner(mined: Sequence[Mined], num_miners: int, vectors: dict[str, np.ndarray], similarity: float) -> list[Merged]:
    """Cluster one owner's mined interests across miners, strongest first.

    Each phrase, strongest first, joins the nearest cluster at or above `similarity` that has none of its miner yet, or
    founds one; the founder's words stay. Ranked by mean confidence times consensus; a missing confidence counts as 0.5.

    Args:
        mined: interests of all miners, unique per miner.
        num_miners: miners that answered.
        vectors: phrase -> unit vector; only equal phrases merge where a phrase has none.
        similarity: cosine in [0, 1].
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
    return Merged(cluster[0].interest, mean, [entry.miner for entry in cluster], len(cluster) / num_miners)


def merge_responses(responses: pa.Table, encode: Encode, *, similarity: float, max_interests: int) -> pa.Table:
    """Return the `interests` rows of the owners of some responses, in ascending (owner, owner_id, rank).

    Owners must be whole: all responses of an owner are in `responses`. `encode` is called only where at least two
    miners named different phrases for an owner.

    Args:
        responses: rows of `interest_responses`, one per request; "truncated" ones count with their whole interests.
        similarity: cosine from which phrases of two miners are one interest.
        max_interests: interests kept of an owner, the strongest.
    """
    owners: dict[tuple[str, str], list[Mined]] = {}
    for row in responses.select(["owner", "owner_id", "miner", "response", "status"]).to_pylist():
        if row["status"] in ("ok", "truncated"):
            found = [Mined(row["miner"], *pair) for pair in parse_response(row["response"]).interests]
            owners.setdefault((row["owner"], row["owner_id"]), []).extend(found)
    compared = [mined for mined in owners.values() if len({entry.miner for entry in mined}) > 1]
    phrases = sorted({entry.interest for mined in compared for entry in mined})
    vectors = dict(zip(phrases, encode(phrases), strict=True)) if phrases else {}
    rows: dict[str, list] = {field.name: [] for field in TABLES["interests"].schema}
    for owner, owner_id in sorted(owners):
        mined = owners[owner, owner_id]
        merged = merge_owner(mined, len({entry.miner for entry in mined}), vectors, similarity)
        for rank, one in enumerate(merged[:max_interests]):
            values = (owner, owner_id, rank, one.interest, one.confidence, sorted(one.miners), one.consensus)
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
    return pa.table(rows, schema=TABLES["interests"].schema)
