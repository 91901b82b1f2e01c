"""A trained run in the form for requests: mapped files and tensors, no Python object per item."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int, Int32, Int64

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import IdIndex, build_id_index
from digr.images.showing import run_folders
from digr.interests.canonical import CanonicalInterests
from digr.policy.model import SidPolicy, load_policy
from digr.policy.reasons import ItemInterests, keys_of, shared_interests, sort_interests
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.ranking.views import View
from digr.serving.build import Build, BuildRequest, default_cache, open_build
from digr.serving.facts import ItemFacts, map_facts, matching_items, pack
from digr.serving.grown_trie import map_grown_trie, shortest_sid
from digr.serving.interest_search import InterestIndex, map_interest_index
from digr.serving.item_rows import ItemRows, map_rows
from digr.serving.mapped import map_array, map_id_index, map_texts
from digr.serving.users import UserHistories, map_histories, newest_interaction
from digr.sids.trie import SidTrie
from digr.tables import table_spec
from serve.contract.schemas import ItemFilter
from serve.items.lineage import check_parts
from serve.lists.indexing import ServedIndex, load_run_index
from serve.lists.ranking import RunRanker, ServedRanker, load_run_ranker
from serve.settings import VersionSettings

PolicyName = Literal["policy_grpo", "policy_sft"]
ITEM_SCHEMA = table_spec("items").schema
LABEL_SCHEMA = pa.schema(
    [
        ("owner", pa.string()),
        ("owner_id", pa.string()),
        ("rank", pa.int32()),
        ("interest", pa.string()),
        ("probability", pa.float64()),
        ("label", pa.int8()),
    ]
)
"""Of one interest, see `flat_interests`."""


class RunTables(NamedTuple):
    """What is the same in all states of a version, whatever is added to it."""

    policy_name: PolicyName
    policy_digest: str
    sids_digest: str
    policy: SidPolicy
    level_sizes: tuple[int, ...]
    build: Build
    """The mapped files of the run's N items."""
    ids: IdIndex
    rows: ItemRows
    codes: Int32[np.ndarray, "N L"]
    canonical: CanonicalInterests | None
    users: UserHistories
    user_interests: pa.StringArray
    """The interests of each user that prompts show, empty for none."""
    root: Mapping[int, Mapping[str, Any]]
    """What is shown of each child of the tree's root: `samples`, places, and `interests`, names."""
    max_history: int
    newest: int | None
    """Time of the newest interaction, milliseconds since 1970; later events come on top of the histories."""
    ranker: RunRanker | None
    image_folders: tuple[str, ...]
    """Local folders below which images of its items may be read."""
    item_index: View | None
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
    interest_index: InterestIndex | None
    """For the search; None if the run has no canonical interests."""
    users: UserHistories
    popular: Int[np.ndarray, " N"]
    """Items that may be listed, the most popular first."""
    listed: Bool[np.ndarray, " N"] | None
    """Items that may be listed; None for all."""
    listed_words: Int64[np.ndarray, " W"] | None
    """The same as bits of words."""
    max_history: int
    """Newest items of a history that the policy was trained to see."""
    num_new_items: int
    shortest_sid: int
    """Number of codes of the shortest semantic ID."""
    ranker: ServedRanker | None
    """The ranker of the lists; None if the policy's own lists are served."""
    item_index: ServedIndex | None
    """Neighbours and vectors of items; None if the run has no ranking index."""

    def shown_interests(self, user_id: str | None) -> str | None:
        """Return the interests of a user that a prompt shows; None for none."""
        user = -1 if user_id is None else int(self.users.users.find([user_id])[0])
        return None if user < 0 else self.tables.user_interests[user].as_py() or None

    def prompt(self, places: Sequence[int], interests: str | None = None) -> str:
        """Return the policy's prompt: the shown interests of the user, then the newest items of the history."""
        newest = torch.as_tensor(list(places[-self.max_history :]), device=self.trie.codes.device)
        return history_prompt(sid_texts(self.trie.codes[newest].cpu().numpy()), interests)

    def explain(self, history: Sequence[int], items: Int[np.ndarray, " M"], interests: str | None = None) -> list[list[str]]:
        """Return the reasons for each item."""
        return shared_interests(self.interests, history[-self.max_history :], items, interests)

    def matching(self, wanted: ItemFilter) -> Int64[np.ndarray, " W"]:
        """Mark the items that match a filter as bits of words, see `digr.sids.filters`."""
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


def read_run(version: VersionSettings, device: str, cache: Path | None = None) -> RunTables:
    """Read a policy of a run, and map its catalogue.

    Args:
        cache: folder of mapped files on this machine; that of the user if not given.

    Raises:
        ValueError: the run cannot be served, see `check_run`.
    """
    check_run(version)
    store = Store(version.run_dir, version.variant)
    name = _policy_name(store, version.policy)
    with artifacts.local_files(store, name) as folder:
        policy = load_policy(folder, device)
    max_history = min(artifacts.require(store, "histories").config["data"]["max_history"], policy.max_history)
    trained = artifacts.require(store, name).config  # old policies lack the fields; then prompts show no interests
    most = trained.get("policy", {}).get("prompt_interests") or 0
    shown = (most, trained["tasks"]["max_text_chars"]) if most else (0, 0)
    build = open_build(BuildRequest(store.root, store.variant, max_history, *shown), cache or default_cache())
    sids, files = artifacts.require(store, "item_sids"), build.folder
    level_sizes = tuple(sids.facts["level_sizes"])
    ranker = load_run_ranker(store) if version.ranker == "on" else None
    return RunTables(
        policy_name=name,
        policy_digest=artifacts.require(store, name).digest,
        sids_digest=sids.digest,
        policy=policy,
        level_sizes=level_sizes,
        build=build,
        ids=map_id_index(files, "ids"),
        rows=map_rows(files / "items.arrow"),
        codes=map_array(files, "trie-codes").reshape(-1, len(level_sizes)),
        canonical=_map_canonical(files),
        users=map_histories(files),
        user_interests=map_texts(files, "user-interests"),
        root={int(code): child for code, child in json.loads((files / "root.json").read_text()).items()},
        max_history=max_history,
        newest=newest_interaction(store),
        ranker=ranker,
        item_index=ranker.lists.view if ranker else load_run_index(store),
        image_folders=run_folders(store),
        loaded_at=time.time(),
    )


def _map_canonical(files: Path) -> CanonicalInterests | None:
    if not (files / "phrases.sqlite").exists():
        return None
    phrases, names = (map_texts(files, f"canonical-{name}") for name in ("phrases", "names"))
    return CanonicalInterests(phrases, map_array(files, "canonical-group"), names)


def digests_of(version: VersionSettings) -> tuple[str, ...]:
    """Return the digests that distinguish builds of a run in the same folder."""
    store = Store(version.run_dir, version.variant)
    names = (_policy_name(store, version.policy), "item_sids", "items", "interest_labels", "interactions", "histories")
    optional = ("canonical_interests", "ranking_index", *(["ranker"] if version.ranker == "on" else []))
    found = (artifacts.read_manifest(store, name) for name in optional)
    return (*(artifacts.require(store, name).digest for name in names), *(each.digest for each in found if each))


def assemble(tables: RunTables, added: Additions | None = None, changes: Changes | None = None) -> ServedRun:
    """Map a run with the items that came after it and what has changed about items; no SID and no place of the run changes.

    It costs what these items cost: the run's files are mapped again, and only the pages that they change are copied.
    """
    if added is None:
        no_codes = np.zeros((0, len(tables.level_sizes)), np.int32)
        added = Additions(ITEM_SCHEMA.empty_table(), no_codes, LABEL_SCHEMA.empty_table())
    files, num = tables.build.folder, len(tables.codes)
    order = np.lexsort(added.codes.T[::-1])
    items = added.items.take(pa.array(order)).combine_chunks()
    ids = items["item_id"].combine_chunks() if len(items) else pa.array([], pa.string())
    trie = map_grown_trie(files, ids, added.codes[order])
    facts = map_facts(files, tables.rows, *_changed_rows(tables.ids, items, ids, changes))
    interests = _map_interests(files, tables.canonical, added.labels, ids)
    hidden = facts.ids.find(changes.hidden) if changes else np.zeros(0, np.int64)
    listed = None
    if (hidden >= 0).any():
        listed = np.ones(len(facts.ids), bool)
        listed[hidden[hidden >= 0]] = False
    served_index = _map_index(files, tables.item_index, len(items))
    return ServedRun(
        tables=tables,
        policy=tables.policy,
        trie=trie.to(tables.policy.device),
        facts=facts,
        interests=interests,
        interest_index=map_interest_index(files, interests, num),
        users=tables.users,
        popular=facts.popular if listed is None else facts.popular[listed[facts.popular]],
        listed=listed,
        listed_words=None if listed is None else pack(listed),
        max_history=tables.max_history,
        num_new_items=len(items),
        shortest_sid=min(shortest_sid(files), int((added.codes >= 0).sum(1).min(initial=len(tables.level_sizes)))),
        ranker=ServedRanker(tables.ranker, served_index) if tables.ranker and served_index else None,
        item_index=served_index,
    )


def _changed_rows(
    ids: IdIndex, items: pa.Table, added_ids: pa.Array, changes: Changes | None
) -> tuple[Int[np.ndarray, " C"], pa.Table]:
    """Return the places, ascending, and the rows of the items that were added or changed."""
    places = len(ids) + np.arange(len(items))
    if changes is None or not len(changes.rows):
        return places, items
    index = IdIndex(ids.ids, ids.ordered, ids.places, build_id_index(added_ids) if len(added_ids) else None)
    every = np.concatenate([places, index.find(changes.rows["item_id"])])
    newest = len(every) - 1 - np.unique(every[::-1], return_index=True)[1]
    newest = newest[every[newest] >= 0]
    return every[newest], pa.concat_tables([items, changes.rows]).take(pa.array(newest)).combine_chunks()


def _map_interests(files: Path, canonical: CanonicalInterests | None, labels: pa.Table, added_ids: pa.Array) -> ItemInterests:
    texts, offsets = sort_interests(labels, added_ids)
    others = map_texts(files, "interest-others")
    keys = keys_of(texts, canonical, others).astype(np.int32)
    mapped = map_array(files, "interest-offsets")
    more = (mapped[-1] + offsets[1:]).astype(np.int64)
    return ItemInterests(
        texts=map_texts(files, "interest-texts", texts),
        keys=map_array(files, "interest-keys", keys),
        offsets=map_array(files, "interest-offsets", more),
        canonical=canonical,
        others=others,
    )


def _map_index(files: Path, index: View | None, num_added: int) -> ServedIndex | None:
    if index is None:
        return None
    row_of = map_array(files, "row-of-place", np.full(num_added, -1, np.int32))
    return ServedIndex(index, row_of, map_array(files, "place-of-row"))


def _policy_name(store: Store, wanted: str) -> PolicyName:
    if wanted == "policy_sft" or (wanted == "newest" and artifacts.read_manifest(store, "policy_grpo") is None):
        return "policy_sft"
    return "policy_grpo"
