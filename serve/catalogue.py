"""A trained run in the form in which requests need it: Arrow columns and tensors, no object per item."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int

from digr import artifacts
from digr.artifacts import Store
from digr.data.ids import IdIndex, build_id_index
from digr.policy.beam import Recommendation, recommend
from digr.policy.model import SidPolicy, load_policy
from digr.policy.reasons import ItemInterests, load_item_interests, shared_interests
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import SidTrie, load_trie


class ServedRun(NamedTuple):
    """One policy with its catalogue; everything about items is in the order of `trie.item_ids`."""

    policy_name: str
    policy_digest: str
    policy: SidPolicy
    trie: SidTrie
    titles: pa.Array
    interests: ItemInterests
    max_history: int
    """Newest items of a history that the policy was trained to see."""
    items: IdIndex

    def prompt(self, places: Sequence[int]) -> str:
        """Write the newest items of a history as the policy's prompt."""
        newest = torch.as_tensor(list(places[-self.max_history :]), device=self.trie.codes.device)
        return history_prompt(sid_texts(self.trie.codes[newest].cpu().numpy()))

    def rank(self, prompts: Sequence[str], k: int, beam_width: int) -> list[Recommendation]:
        """Decode a batch of prompts, just as the batch job does."""
        return recommend(self.policy, self.trie, prompts, k, beam_width)

    def explain(self, history: Sequence[int], items: Int[np.ndarray, " M"]) -> list[list[str]]:
        """Return the reasons for each item."""
        return shared_interests(self.interests, history[-self.max_history :], items)


def load_run(run_dir: str, device: str) -> ServedRun:
    """Load the newest policy of a run (after GRPO if that was done) and its catalogue.

    Raises:
        ValueError: an artifact is missing; the message names the job that makes it.
    """
    store = Store(run_dir)
    grpo = artifacts.read_manifest(store, "policy_grpo")
    name = "policy_grpo" if grpo is not None else "policy_sft"
    manifest = grpo or artifacts.require(store, name)
    trie = load_trie(store)
    with artifacts.local_files(store, name) as folder:
        policy = load_policy(folder, device)
    items = artifacts.read_table(store, "items", ["item_id", "title"])
    titles = items["title"].take(pc.index_in(trie.item_ids, value_set=items["item_id"])).combine_chunks()
    return ServedRun(
        policy_name=name,
        policy_digest=manifest.digest,
        policy=policy,
        trie=trie.to(device),
        titles=titles,
        interests=load_item_interests(store, trie.item_ids),
        max_history=artifacts.require(store, "histories").config["data"]["max_history"],
        items=build_id_index(trie.item_ids),
    )
