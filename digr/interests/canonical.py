"""Canonical interests: all phrases of one motive under one id, so that items that serve the motive share the id.

Phrases are grouped by average linkage of their vectors, at several grains: a fine grain joins wordings of one motive, a coarse
one joins related motives. Linkage compares all pairs, so k-means first cuts the phrases into cells. Only the most frequent
phrases are linked; each other phrase joins the group with the nearest mean.
"""

from typing import NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int
from scipy.cluster.hierarchy import fcluster, linkage

from digr import artifacts
from digr.artifacts import Store

CELL_PHRASES = 4096
"""About how many phrases a cell has; phrases of different cells are never joined."""
KMEANS_ITERATIONS, KMEANS_SAMPLES = 20, 64


class CanonicalInterests(NamedTuple):
    """The K canonical interests of a run at its finest grain, and its P phrases."""

    phrases: pa.Array
    """The phrases, in lower case, ascending."""
    group: Int[np.ndarray, " P"]
    """The canonical interest of each phrase."""
    names: pa.Array
    """The name of each canonical interest."""


def load_canonical(store: Store) -> CanonicalInterests | None:
    """Read the canonical interests of a run; None if it has none."""
    if artifacts.read_manifest(store, "canonical_interests") is None:
        return None
    table = artifacts.read_table(store, "canonical_interests", ["interest", "groups", "names"]).sort_by("interest")
    group = pc.list_element(table["groups"], 0).to_numpy()
    return CanonicalInterests(table["interest"].combine_chunks(), group, group_names(table, 0))


def find_groups(canonical: CanonicalInterests, texts: pa.Array) -> Int[np.ndarray, " B"]:
    """Return the canonical interest of each text, -1 if the text is not one of the phrases; see `read_alike`."""
    at = find_sorted(canonical.phrases, read_alike(texts))
    return np.where(at >= 0, canonical.group[at], -1) if len(canonical.phrases) else at


def find_sorted(ordered: pa.Array, texts: pa.Array) -> Int[np.ndarray, " B"]:
    """Return the position of each text in distinct texts that ascend, -1 for an unknown one."""
    if not len(ordered):
        return np.full(len(texts), -1)
    at = np.minimum(pc.search_sorted(ordered, texts).to_numpy(zero_copy_only=False), len(ordered) - 1)
    known = pc.equal(ordered.take(pa.array(at)), texts).to_numpy(zero_copy_only=False)
    return np.where(known, at.astype(np.int64), -1)


def read_alike(texts: pa.Array) -> pa.Array:
    """Return interests in lower case without outer spaces, the form in which they are compared."""
    return pc.utf8_lower(pc.utf8_trim_whitespace(texts))


def join_phrases(vectors: Float32[np.ndarray, "P D"], min_cosine: float, *, seed: int) -> Int[np.ndarray, " P"]:
    """Return the group of each phrase, counted from 0.

    Args:
        vectors: unit vectors of P distinct phrases.
        min_cosine: two groups are joined if the mean cosine between their phrases is at least this.
        seed: for the k-means that cuts phrases into cells.
    """
    groups, num_groups = np.zeros(len(vectors), np.int64), 0
    for cell in _cells(vectors, seed):
        found = _link(vectors[cell], min_cosine)
        groups[cell] = found + num_groups
        num_groups += int(found.max()) + 1
    return groups


def nearest_group(
    vectors: Float32[np.ndarray, "R D"], means: Float32[np.ndarray, "K D"]
) -> tuple[Int[np.ndarray, " R"], Float32[np.ndarray, " R"]]:
    """Return the group nearest to each of R phrases, and its similarity.

    Args:
        vectors: unit vectors of the phrases.
        means: mean vectors of the K groups, K at least 1. With plain means the similarity is the mean cosine to the group's
            phrases, as in average linkage; with means scaled to unit length it is the cosine to the group's mean.
    """
    index = faiss.IndexFlatIP(means.shape[1])
    index.add(np.ascontiguousarray(means))
    nearness, group = index.search(np.ascontiguousarray(vectors), 1)
    return group[:, 0], nearness[:, 0]


def group_names(table: pa.Table, grain: int) -> pa.Array:
    """Return the names of all groups of a grain, in the order of their ids, from rows of `canonical_interests`."""
    group, name = (pc.list_element(table[column], grain) for column in ("groups", "names"))
    first = np.unique(group.to_numpy(), return_index=True)[1]
    return name.combine_chunks().take(pa.array(first))


def _cells(vectors: Float32[np.ndarray, "P D"], seed: int) -> list[Int[np.ndarray, " p"]]:
    """Cut phrases into cells of at most twice `CELL_PHRASES`; larger cells are cut again."""
    if len(vectors) <= 2 * CELL_PHRASES:
        return [np.arange(len(vectors))] if len(vectors) else []
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        -(-len(vectors) // CELL_PHRASES),
        niter=KMEANS_ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=KMEANS_SAMPLES,
    )
    kmeans.train(np.ascontiguousarray(vectors))
    owner = kmeans.index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]
    cells = [np.flatnonzero(owner == number) for number in np.unique(owner)]
    if len(cells) == 1:  # vectors that k-means cannot separate
        return np.array_split(cells[0], -(-len(vectors) // CELL_PHRASES))
    return [cell[part] for cell in cells for part in _cells(vectors[cell], seed)]


def _link(vectors: Float32[np.ndarray, "p D"], min_cosine: float) -> Int[np.ndarray, " p"]:
    if len(vectors) == 1:
        return np.zeros(1, np.int64)
    distance = np.maximum(1 - vectors @ vectors.T, 0)
    condensed = distance[np.triu_indices(len(vectors), 1)]
    return fcluster(linkage(condensed, "average"), 1 - min_cosine, "distance").astype(np.int64) - 1
