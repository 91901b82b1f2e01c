"""A trained run in the form in which requests need it: Arrow columns and tensors, no object per item."""

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import build_id_index
from digr.policy.model import SidPolicy, load_policy
from digr.policy.reasons import ItemInterests, load_item_interests, shared_interests
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.serving.facts import ItemFacts, index_facts, matching_items
from digr.serving.users import UserHistories, count_interactions, index_histories
from digr.sids.trie import SidTrie, load_trie
from serve.schemas import ItemFilter
from serve.settings import VersionSettings

PolicyName = Literal["policy_grpo", "policy_sft"]
ITEM_COLUMNS = ("item_id", "title", "description", "brand", "categories", "price_usd", "image_uri")


class ServedRun(NamedTuple):
    """One version: a policy with its catalogue; everything about items is in the order of `trie.item_ids`."""

    policy_name: PolicyName
    policy_digest: str
    policy: SidPolicy
    trie: SidTrie
    facts: ItemFacts
    interests: ItemInterests
    users: UserHistories
    popular: Int[np.ndarray, " N"]
    """Items, the most popular first."""
    max_history: int
    """Newest items of a history that the policy was trained to see."""
    loaded_at: float
    num_new_items: int = 0

    def prompt(self, places: Sequence[int]) -> str:
        """Write the newest items of a history as the policy's prompt."""
        newest = torch.as_tensor(list(places[-self.max_history :]), device=self.trie.codes.device)
        return history_prompt(sid_texts(self.trie.codes[newest].cpu().numpy()))

    def explain(self, history: Sequence[int], items: Int[np.ndarray, " M"]) -> list[list[str]]:
        """Return the reasons for each item."""
        return shared_interests(self.interests, history[-self.max_history :], items)

    def matching(self, wanted: ItemFilter) -> Bool[np.ndarray, " N"]:
        """Mark the items that a filter means."""
        return matching_items(self.facts, **wanted.model_dump())

    def interests_of(self, place: int) -> list[str]:
        """Return an item's trusted interests, strongest first."""
        start, end = self.interests.offsets[place], self.interests.offsets[place + 1]
        return self.interests.texts.slice(int(start), int(end - start)).to_pylist()


def load_run(version: VersionSettings, device: str) -> ServedRun:
    """Load a policy of a run and its catalogue.

    Raises:
        ValueError: an artifact is missing; the message names the job that makes it.
    """
    store = Store(version.run_dir, version.variant)
    name = _policy_name(store, version.policy)
    manifest = artifacts.require(store, name)
    trie = load_trie(store)
    max_history = artifacts.require(store, "histories").config["data"]["max_history"]
    with artifacts.local_files(store, name) as folder:
        policy = load_policy(folder, device)
    items = artifacts.read_table(store, "items", ITEM_COLUMNS)
    index = build_id_index(trie.item_ids)
    histories = artifacts.iter_table(store, "histories", ["user_id", "split", "history", "target"])
    counts = count_interactions((batch.filter(pc.equal(batch["split"], "train")) for batch in histories), index)
    popular = np.lexsort((np.random.default_rng(0).permutation(len(counts)), -counts))  # ties never by id
    standing = np.empty_like(popular)
    standing[popular] = np.arange(len(popular))
    interactions = artifacts.read_table(store, "interactions", ["user_id", "position", "item_id"])
    return ServedRun(
        policy_name=name,
        policy_digest=manifest.digest,
        policy=policy,
        trie=trie.to(device),
        facts=index_facts(items.take(pc.index_in(trie.item_ids, value_set=items["item_id"])), standing),
        interests=load_item_interests(store, trie.item_ids),
        users=index_histories(interactions, index, max_history),
        popular=popular,
        max_history=max_history,
        loaded_at=time.time(),
    )


def _policy_name(store: Store, wanted: str) -> PolicyName:
    if wanted == "policy_sft" or (wanted == "newest" and artifacts.read_manifest(store, "policy_grpo") is None):
        return "policy_sft"
    return "policy_grpo"


def places_array(places: Sequence[int] | Int[np.ndarray, " M"]) -> pa.Array:
    """Return places as Arrow's indices."""
    return pa.array(np.asarray(places, np.int64))
