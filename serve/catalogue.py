"""A trained run in the form for requests: Arrow columns and tensors, no Python object per item."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Int, Int32

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import build_id_index
from digr.data.transitions import count_items, read_sequences
from digr.images.showing import run_folders
from digr.interests.canonical import CanonicalInterests, load_canonical
from digr.policy.model import SidPolicy, load_policy
from digr.policy.reasons import ItemInterests, index_interests, shared_interests
from digr.policy.user_interests import shown_interests
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.serving.facts import ItemFacts, index_facts, matching_items, words_of
from digr.serving.users import UserHistories, index_histories
from digr.sids.trie import SidTrie, build_trie, codes_of
from digr.tables import Owner, flat_interests, table_spec
from serve.indexing import RunIndex, ServedIndex, load_run_index, serve_index
from serve.lineage import check_parts
from serve.ranking import RunRanker, ServedRanker, load_run_ranker
from serve.schemas import ItemFilter
from serve.settings import VersionSettings

PolicyName = Literal["policy_grpo", "policy_sft"]
ITEM_SCHEMA = table_spec("items").schema
LABEL_COLUMNS = ("owner", "owner_id", "rank", "interest", "probability", "label")
"""Of one interest, see `flat_interests`."""


class RunTables(NamedTuple):
    """The tables of a version, as they were read: N items in the order of `items`."""

    policy_name: PolicyName
    policy_digest: str
    sids_digest: str
    policy: SidPolicy
    level_sizes: tuple[int, ...]
    items: pa.Table
    codes: Int32[np.ndarray, "N L"]
    labels: pa.Table
    """Trusted interests of items."""
    canonical: CanonicalInterests | None
    phrase_words: pa.Array
    """Words of its phrases for the search; empty if the run has no canonical interests."""
    counts: Int[np.ndarray, " N"]
    """Occurrences in the training interactions."""
    users: UserHistories
    user_interests: pa.StringArray
    """The interests of each user that prompts show, null for none."""
    max_history: int
    ranker: RunRanker | None
    image_folders: tuple[str, ...]
    """Local folders below which images of its items may be read."""
    item_index: RunIndex | None
    """Neighbours and vectors of items; None if the run has no ranking index."""
    loaded_at: float


class Additions(NamedTuple):
    """Items that came after the run."""

    items: pa.Table
    codes: Int32[np.ndarray, "M L"]
    labels: pa.Table


class Changes(NamedTuple):
    """What has changed about items of the run or the additions."""

    rows: pa.Table
    """Rows of `items`, which replace those of the same ids."""
    hidden: list[str]
    """Ids of items that may not be listed; some may be unknown here."""


class ServedRun(NamedTuple):
    """One version: a policy with its catalogue; everything about items is in the order of `trie.item_ids`."""

    tables: RunTables
    policy: SidPolicy
    trie: SidTrie
    facts: ItemFacts
    interests: ItemInterests
    users: UserHistories
    popular: Int[np.ndarray, " N"]
    """Items that may be listed, the most popular first."""
    listed: Bool[np.ndarray, " N"] | None
    """Items that may be listed; None for all."""
    max_history: int
    """Newest items of a history that the policy was trained to see."""
    num_new_items: int
    ranker: ServedRanker | None
    """The ranker of the lists; None if the policy's own lists are served."""
    item_index: ServedIndex | None
    """Neighbours and vectors of items; None if the run has no ranking index."""

    def shown_interests(self, user_id: str | None) -> str | None:
        """Return the interests of a user that a prompt shows; None for none."""
        user = -1 if user_id is None else int(self.users.users.find([user_id])[0])
        return None if user < 0 else self.tables.user_interests[user].as_py()

    def prompt(self, places: Sequence[int], interests: str | None = None) -> str:
        """Return the policy's prompt: the shown interests of the user, then the newest items of the history."""
        newest = torch.as_tensor(list(places[-self.max_history :]), device=self.trie.codes.device)
        return history_prompt(sid_texts(self.trie.codes[newest].cpu().numpy()), interests)

    def explain(self, history: Sequence[int], items: Int[np.ndarray, " M"], interests: str | None = None) -> list[list[str]]:
        """Return the reasons for each item."""
        return shared_interests(self.interests, history[-self.max_history :], items, interests)

    def matching(self, wanted: ItemFilter) -> Bool[np.ndarray, " N"]:
        """Mark the items that match a filter."""
        return matching_items(self.facts, **wanted.model_dump())

    def interests_of(self, place: int) -> list[str]:
        """Return an item's trusted interests, strongest first."""
        start, end = self.interests.offsets[place], self.interests.offsets[place + 1]
        return self.interests.texts.slice(int(start), int(end - start)).to_pylist()


def check_run(version: VersionSettings) -> None:
    """Refuse a run that cannot be served, before anything but its manifests is read.

    Raises:
        ValueError: an artifact is missing, or parts of the run were not made from each other; the message names the job to run.
    """
    store = Store(version.run_dir, version.variant)
    name = _policy_name(store, version.policy)
    for needed in (name, "item_sids", "items", "interest_labels", "interactions", "histories"):
        artifacts.require(store, needed)
    check_parts(store, name, has_ranker=version.ranker == "on")


def read_run(version: VersionSettings, device: str) -> RunTables:
    """Read a policy of a run and its catalogue.

    Raises:
        ValueError: the run cannot be served, see `check_run`.
    """
    check_run(version)
    store = Store(version.run_dir, version.variant)
    name = _policy_name(store, version.policy)
    manifest, sids = artifacts.require(store, name), artifacts.require(store, "item_sids")
    level_sizes = tuple(sids.facts["level_sizes"])
    with artifacts.local_files(store, name) as folder:
        policy = load_policy(folder, device)
    max_history = min(artifacts.require(store, "histories").config["data"]["max_history"], policy.max_history)
    coded = artifacts.read_table(store, "item_sids")
    ids = coded["item_id"].combine_chunks()
    items = artifacts.read_table(store, "items")
    labels = flat_interests(_read_labels(store, "item"))
    index = build_id_index(ids)
    interactions = artifacts.read_table(store, "interactions", ["user_id", "position", "item_id"])
    users = index_histories(interactions, index, max_history)
    canonical = load_canonical(store)
    ranker = load_run_ranker(store) if version.ranker == "on" else None
    shown = shown_interests(manifest.config, partial(_read_labels, store, "user"))
    return RunTables(
        policy_name=name,
        policy_digest=manifest.digest,
        sids_digest=sids.digest,
        policy=policy,
        level_sizes=level_sizes,
        items=items.take(pc.index_in(ids, value_set=items["item_id"])).combine_chunks(),
        codes=codes_of(coded, len(level_sizes)),
        labels=labels.filter(pc.equal(labels["label"], 1)).select(LABEL_COLUMNS),
        canonical=canonical,
        phrase_words=words_of(canonical.phrases if canonical else pa.array([], pa.string())),
        counts=count_items(read_sequences(store, index.find), len(index)),
        users=users,
        user_interests=shown.of_users(users.users.ids),
        max_history=max_history,
        ranker=ranker,
        item_index=RunIndex(ranker.lists.view, ranker.item_ids) if ranker else load_run_index(store),
        image_folders=run_folders(store),
        loaded_at=time.time(),
    )


def _read_labels(store: Store, owner: Owner) -> pa.Table:
    return artifacts.read_table(store, "interest_labels", ["owner", "owner_id", "interests"], owner=[owner])


def digests_of(version: VersionSettings) -> tuple[str, ...]:
    """Return the digests that distinguish builds of a run in the same folder."""
    store = Store(version.run_dir, version.variant)
    names = (_policy_name(store, version.policy), "item_sids", "items", "interest_labels")
    optional = ("canonical_interests", "ranking_index", *(["ranker"] if version.ranker == "on" else []))
    found = (artifacts.read_manifest(store, name) for name in optional)
    return (*(artifacts.require(store, name).digest for name in names), *(each.digest for each in found if each))


def assemble(tables: RunTables, added: Additions | None = None, changes: Changes | None = None) -> ServedRun:
    """Index a run with the items that came after it and what has changed about items; no SID changes."""
    items, codes, labels, counts = tables.items, tables.codes, tables.labels, tables.counts
    if added is not None:
        items, labels = pa.concat_tables([items, added.items]), pa.concat_tables([labels, added.labels])
        codes = np.concatenate([codes, added.codes])
        counts = np.concatenate([counts, np.zeros(len(added.codes), np.int64)])
    ids = items["item_id"].combine_chunks()
    index, listed, hidden = build_id_index(ids), None, np.zeros(0, np.int64)
    if changes is not None:
        row_of = np.arange(len(items))
        row_of[index.find(changes.rows["item_id"])] = np.arange(len(changes.rows)) + len(items)
        items = pa.concat_tables([items, changes.rows]).take(pa.array(row_of))
        hidden = index.find(changes.hidden)
    trie = build_trie(ids, codes, tables.level_sizes)
    order = index.find(trie.item_ids)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    shuffled = np.random.default_rng(0).permutation(len(counts))  # ties are never broken by id
    popular = place[np.lexsort((shuffled, -counts))]
    standing = np.empty_like(popular)
    standing[popular] = np.arange(len(popular))
    if (hidden >= 0).any():
        listed = np.ones(len(place), bool)
        listed[place[hidden[hidden >= 0]]] = False
    served_index = serve_index(tables.item_index, trie.item_ids)
    return ServedRun(
        tables=tables,
        policy=tables.policy,
        trie=trie.to(tables.policy.device),
        facts=index_facts(items.take(pa.array(order)), standing),
        interests=index_interests(labels, trie.item_ids, tables.canonical),
        users=tables.users._replace(places=place[tables.users.places]),
        popular=popular if listed is None else popular[listed[popular]],
        listed=listed,
        max_history=tables.max_history,
        num_new_items=len(codes) - len(tables.codes),
        ranker=ServedRanker(tables.ranker, served_index) if tables.ranker and served_index else None,
        item_index=served_index,
    )


def _policy_name(store: Store, wanted: str) -> PolicyName:
    if wanted == "policy_sft" or (wanted == "newest" and artifacts.read_manifest(store, "policy_grpo") is None):
        return "policy_sft"
    return "policy_grpo"


def places_array(places: Sequence[int] | Int[np.ndarray, " M"]) -> pa.Array:
    """Return places as Arrow's indices."""
    return pa.array(np.asarray(places, np.int64))
