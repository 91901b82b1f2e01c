"""Facts about semantic IDs for the report: the tree of prefixes, items per code, a map of items, and collisions.

All facts are counted in passes over `item_sids` and limited to a bounded number of nodes and items, so that neither memory
nor the page grows with the catalogue.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int32, Int64

from digr import artifacts
from digr.artifacts import Store
from digr.sids.assignment import rank_in_group
from digr.sids.trie import codes_of
from digr.tables import flat_interests

MAX_NODES, MAX_DEPTH = 300, 3
"""Number of largest prefixes shown of each length, and the longest length shown."""
SAMPLE = 30
"""Number of items of a prefix whose interests are counted."""
TITLES, INTERESTS, TITLE_CHARS = 4, 5, 70
MAP_ITEMS, MAP_BASE = 1200, 20_000
"""Number of items on the map, and of rows from which they are drawn."""


class Prefixes(NamedTuple):
    """The kept prefixes of one length, in ascending order of their keys."""

    keys: Int64[np.ndarray, " P"]
    """(place of the parent among the kept prefixes one shorter) * (codes of this level) + code"""
    num_items: Int64[np.ndarray, " P"]


class SidOverview(NamedTuple):
    """A bounded overview of the catalogue's SIDs."""

    nodes: list[dict[str, Any]]
    """Prefixes: id, parent ("" for none), label, num_items, interests, titles; parents come before their children."""
    code_counts: list[Int64[np.ndarray, " K"]]
    """Number of items of every code of each level, without the suffix level."""
    num_items: int


def sid_overview(store: Store, rng: np.random.Generator) -> SidOverview | None:
    """Count the prefixes of all SIDs, keep the largest, and sample some items of each; None if there are no SIDs.

    A prefix of one item is kept only if it is a first code. Interests come from up to 30 random items of the prefix, most
    frequent first, then by summed confidence.
    """
    manifest = artifacts.read_manifest(store, "item_sids")
    if manifest is None or not manifest.facts.get("usage_rate"):
        return None
    sizes = manifest.facts["level_sizes"]
    levels = len(manifest.facts["usage_rate"])
    code_counts = [np.zeros(size, np.int64) for size in sizes[:levels]]
    kept: list[Prefixes] = []
    for depth in range(min(levels, MAX_DEPTH)):
        counts = np.zeros((len(kept[-1].keys) if kept else 1) * sizes[depth], np.int64)
        for batch in _batches(store, len(sizes)):
            at = _places(batch.codes, kept, sizes)
            counts += np.bincount(at[at >= 0] * sizes[depth] + batch.codes[at >= 0, depth], minlength=len(counts))
            if not depth:
                for level, count in enumerate(code_counts):
                    count += np.bincount(batch.codes[:, level], minlength=len(count))
        candidates = np.flatnonzero(counts >= (2 if depth else 1))
        largest = candidates[np.lexsort((candidates, -counts[candidates]))[:MAX_NODES]]
        kept.append(Prefixes(np.sort(largest), counts[np.sort(largest)]))
    samples = _sample_items(store, kept, sizes, rng)
    return SidOverview(_nodes(store, kept, samples, sizes), code_counts, int(code_counts[0].sum()))


def item_map(store: Store, seed: int) -> dict[str, Any] | None:
    """Place a sample of items in the plane by t-SNE of their vectors; None if there are too few.

    Returns:
        points float [N 2], first int [N] (first codes), and titles and SIDs of the items.
    """
    if any(artifacts.read_manifest(store, name) is None for name in ("item_embeddings", "item_sids", "items")):
        return None
    table = artifacts.dataset_of(store, "item_embeddings").head(MAP_BASE, columns=["item_id", "embedding"])
    rows = np.sort(np.random.default_rng(seed).permutation(len(table))[:MAP_ITEMS])
    table = table.take(pa.array(rows)).combine_chunks()
    if len(table) < 10:
        return None
    ids = table["item_id"].to_pylist()
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    sids = artifacts.read_table(store, "item_sids", ["item_id", "codes"], item_id=ids)
    codes = dict(zip(sids["item_id"].to_pylist(), sids["codes"].to_pylist(), strict=True))
    titles = item_titles(store, ids)
    return {
        "points": lay_out(vectors, seed),
        "first": [codes[item][0] for item in ids],
        "titles": [titles[item] for item in ids],
        "sids": ["-".join(map(str, codes[item])) for item in ids],
    }


def lay_out(vectors: Float[np.ndarray, "N D"], seed: int) -> Float[np.ndarray, "N 2"]:
    """Place vectors in the plane by t-SNE, initialised with their first two principal components."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, init="pca", perplexity=perplexity, max_iter=500, random_state=seed, n_jobs=1).fit_transform(vectors)


def collisions(store: Store) -> list[dict[str, Any]] | None:
    """Return the items of the largest groups with equal nearest codes, and their final SIDs; None if there are no SIDs."""
    manifest = artifacts.read_manifest(store, "item_sids")
    if manifest is None:
        return None
    groups = manifest.facts.get("largest_collisions", [])
    ids = [item for group in groups for item in group["item_ids"]]
    if not ids:
        return []
    found = artifacts.read_table(store, "item_sids", ["item_id", "codes"], item_id=ids).to_pylist()
    sids, titles = {row["item_id"]: row["codes"] for row in found}, item_titles(store, ids)
    return [
        {
            "nearest": group["codes"],
            "num_items": group["num_items"],
            "items": [{"title": titles[item], "sid": sids[item]} for item in group["item_ids"]],
        }
        for group in groups
    ]


def item_titles(store: Store, ids: Sequence[str]) -> dict[str, str]:
    """Return the shortened titles of items; the id for items without a title."""
    found = artifacts.read_table(store, "items", ["item_id", "title"], item_id=ids).to_pylist()
    titles = {row["item_id"]: row["title"][:TITLE_CHARS] for row in found}
    return {item: titles.get(item) or item for item in ids}


class _Batch(NamedTuple):
    ids: pa.Array
    codes: Int32[np.ndarray, "B L"]


def _batches(store: Store, levels: int) -> Iterator[_Batch]:
    for batch in artifacts.iter_table(store, "item_sids", ["item_id", "codes"]):
        if len(batch):
            yield _Batch(batch["item_id"], codes_of(pa.table(batch.columns, names=batch.schema.names), levels))


def _places(codes: np.ndarray, kept: Sequence[Prefixes], sizes: Sequence[int]) -> np.ndarray:
    """Return the place of each row's prefix among the longest kept ones; -1 if it is not kept."""
    at = np.zeros(len(codes), np.int64)
    for level, prefixes in enumerate(kept):
        key = at * sizes[level] + codes[:, level]
        place = np.searchsorted(prefixes.keys, key).clip(max=len(prefixes.keys) - 1)
        at = np.where((at >= 0) & (prefixes.keys[place] == key), place, -1) if len(prefixes.keys) else np.full(len(codes), -1)
    return at


def _sample_items(
    store: Store, kept: Sequence[Prefixes], sizes: Sequence[int], rng: np.random.Generator
) -> dict[tuple[int, int], list[str]]:
    """Draw up to 30 items of every kept prefix: (depth, place) -> item ids."""
    first = np.cumsum([0, *(len(prefixes.keys) for prefixes in kept)])
    node, priority, ids = np.zeros(0, np.int64), np.zeros(0), pa.array([], pa.string())
    for batch in _batches(store, len(sizes)):
        drawn = rng.random(len(batch.codes))
        for depth in range(len(kept)):
            at = _places(batch.codes, kept[: depth + 1], sizes)
            rows = np.flatnonzero(at >= 0)
            node = np.concatenate([node, at[rows] + first[depth]])
            priority = np.concatenate([priority, drawn[rows]])
            ids = pa.concat_arrays([ids, batch.ids.take(pa.array(rows)).cast(pa.string())])
        keep = np.flatnonzero(rank_in_group(node, priority, np.arange(len(node))) < SAMPLE)
        node, priority, ids = node[keep], priority[keep], ids.take(pa.array(keep))
    samples: dict[tuple[int, int], list[str]] = {}
    for place, item in zip(node[order := np.argsort(priority)].tolist(), ids.take(pa.array(order)).to_pylist(), strict=True):
        depth = int(np.searchsorted(first, place, side="right")) - 1
        samples.setdefault((depth, place - int(first[depth])), []).append(item)
    return samples


def _nodes(
    store: Store, kept: Sequence[Prefixes], samples: dict[tuple[int, int], list[str]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    ids = sorted({item for sample in samples.values() for item in sample})
    titles = item_titles(store, ids)
    interests: dict[str, list[tuple[str, float]]] = {}
    if artifacts.read_manifest(store, "interests") is not None:
        found = artifacts.read_table(store, "interests", owner=["item"], owner_id=ids)
        for row in flat_interests(found).to_pylist():
            confidence = 1.0 if row["confidence"] is None else row["confidence"]
            interests.setdefault(row["owner_id"], []).append((row["interest"], confidence))
    nodes: list[dict[str, Any]] = []
    names: list[str] = [""]
    for depth, prefixes in enumerate(kept):
        parents, codes = prefixes.keys // sizes[depth], prefixes.keys % sizes[depth]
        labels = [f"{names[parent]}-{code}".lstrip("-") for parent, code in zip(parents.tolist(), codes.tolist(), strict=True)]
        for place, label in enumerate(labels):
            sample = samples.get((depth, place), [])
            nodes.append(
                {
                    "id": label,
                    "parent": label.rpartition("-")[0],
                    "num_items": int(prefixes.num_items[place]),
                    "interests": _top(interests.get(item, []) for item in sample),
                    "titles": [titles[item] for item in sample[:TITLES]],
                }
            )
        names = labels
    return nodes


def _top(interests_of_items: Iterable[list[tuple[str, float]]]) -> list[str]:
    """Return the most frequent interests of items; ties are ordered by confidence."""
    times: Counter[str] = Counter()
    weight: defaultdict[str, float] = defaultdict(float)
    for listed in interests_of_items:
        for interest, confidence in listed:
            times[interest] += 1
            weight[interest] += confidence
    return sorted(times, key=lambda interest: (-times[interest], -weight[interest], interest))[:INTERESTS]
