"""Facts about the ranker for the report: contributions of sources, importance of features, and canonical interests."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import build_id_index
from digr.interests.canonical import group_names
from digr.ranking.features import group_of
from digr.ranking.systems import SERVED

LISTS = f"recommendations/{SERVED.name}_test"
SHOWN_GROUPS, SHOWN_PHRASES = 8, 6


def source_table(store: Store, k: int) -> list[dict[str, Any]] | None:
    """Return each source's share of the first k places of the served test lists; None if lists are not ranked.

    `listed_rate` is the share of the listed items that the source proposed, `hit_rate` the share of the hits, and
    `alone_rate` that of the hits which no other source proposed.
    """
    if artifacts.read_manifest(store, LISTS) is None:
        return None
    targets = artifacts.read_table(store, "histories", ["example_id", "target"], split=["test"])
    index = build_id_index(targets["example_id"])
    counts: dict[str, np.ndarray] = {}
    total = np.zeros(2)
    for batch in artifacts.iter_table(store, LISTS, ["example_id", "item_ids", "sources"], 4096):
        wanted = targets["target"].take(pa.array(index.find_all(batch["example_id"], LISTS)))
        lengths = batch["item_ids"].value_lengths().to_numpy()
        row = np.repeat(np.arange(len(batch)), lengths)
        inside = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) < k
        hit = inside & np.asarray(pc.equal(batch["item_ids"].flatten(), wanted.take(pa.array(row))))
        total += [inside.sum(), hit.sum()]
        proposals = batch["sources"].flatten()
        number = proposals.value_lengths().to_numpy()
        item = np.repeat(np.arange(len(row)), number)
        names = proposals.flatten().dictionary_encode()
        for code, name in enumerate(names.dictionary.to_pylist()):
            of_source = item[np.asarray(names.indices) == code]
            alone = hit[of_source] & (number[of_source] == 1)
            counts[name] = counts.get(name, np.zeros(3)) + np.array([inside[of_source].sum(), hit[of_source].sum(), alone.sum()])
    rows = [
        {
            "source": name,
            "listed_rate": float(listed / max(total[0], 1)),
            "hit_rate": float(hits / max(total[1], 1)),
            "alone_rate": float(alone / max(total[1], 1)),
        }
        for name, (listed, hits, alone) in counts.items()
    ]
    return sorted(rows, key=lambda row: -row["hit_rate"])


def feature_shares(store: Store) -> dict[str, float] | None:
    """Return each group of features' share of the served ranker's scores; None if there is no ranker."""
    manifest = artifacts.read_manifest(store, "ranker")
    if manifest is None:
        return None
    shares: dict[str, float] = {}
    for feature, share in manifest.facts[f"{SERVED.name}/test"]["feature_shares"].items():
        shares[group_of(feature)] = shares.get(group_of(feature), 0.0) + share
    return {group: share for group, share in sorted(shares.items(), key=lambda pair: -pair[1]) if share}


def canonical_groups(store: Store) -> list[dict[str, Any]] | None:
    """Return for each grain the number of canonical interests, and the largest ones with some of their phrases."""
    if artifacts.read_manifest(store, "canonical_interests") is None:
        return None
    table = artifacts.read_table(store, "canonical_interests")
    lists = table["groups"].combine_chunks()
    groups = lists.flatten().to_numpy().reshape(len(table), -1) if len(table) else np.zeros((0, 0), np.int32)
    num_items, phrases = table["num_items"].to_numpy(), table["interest"].combine_chunks()
    found = []
    for grain in range(groups.shape[1]):
        group = groups[:, grain]
        items, names = np.bincount(group, weights=num_items).astype(np.int64), group_names(table, grain)
        largest = np.argsort(-items, kind="stable")[:SHOWN_GROUPS].tolist()
        shown = []
        for number in largest:
            members = np.flatnonzero(group == number)  # the most frequent first, as the table is sorted
            name, texts = names[number].as_py(), phrases.take(pa.array(members[:SHOWN_PHRASES])).to_pylist()
            examples = [text for text in texts if text != name]
            shown.append({"name": name, "phrases": len(members), "items": int(items[number]), "examples": examples})
        found.append({"grain": grain, "num_groups": len(items), "num_phrases": len(table), "largest": shown})
    return found
