"""Input of the workers of `train_sft` and `train_grpo`: shards from Ray Data, and tables by item."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
from ray.data import Dataset

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.models import EncoderConfig
from digr.data.ids import IdIndex, build_id_index
from digr.models.encoders import load_encoder
from digr.partitions import iter_users, parts_of, read_part
from digr.policy.examples import Sids, prompt_examples
from digr.policy.prompts import items_that_fit
from digr.policy.training.grpo import RewardFn, Rewards
from digr.policy.training.rollouts import Rollouts
from digr.policy.training.validation import ValidExamples
from digr.policy.user_interests import shown_interests
from digr.policy.vocabulary import sid_texts
from digr.ranking.groups import InterestGroups, profile_cosine
from digr.ranking.systems import SERVED
from digr.ranking.views import load_arrays
from digr.rewards.interest_reward import reward_terms, reward_weights, total_reward
from digr.sids.trie import SidTrie, codes_of
from digr.tables import flat_interests
from jobs.runtime.datasets import part_dataset, parts_in, read_parts
from jobs.runtime.session import Options
from jobs.runtime.stage import store_of

BATCH_ROWS = 16_384
"""Rows of `histories` or `items` per batch of examples."""


def load_sids(store: Store) -> Sids:
    """Read the text of every item's SID; a process that has read it keeps it."""
    return _read_sids(store, artifacts.require(store, "item_sids").digest)


@lru_cache(maxsize=1)
def _read_sids(store: Store, digest: str) -> Sids:
    table = artifacts.read_table(store, "item_sids")
    num_levels = len(artifacts.require(store, "item_sids").facts["level_sizes"])
    return Sids(build_id_index(table["item_id"]), sid_texts(codes_of(table, num_levels)))


def semantic_levels(store: Store) -> int:
    """Return the number of levels of the run's quantiser, without the suffix level."""
    return len(artifacts.require(store, "item_sids").facts["usage_rate"])


def max_history(config: Config, store: Store) -> int:
    """Return the most items of a history that the policy reads: `data.max_history`, or what fits into `policy.max_tokens`."""
    num_levels = len(artifacts.require(store, "item_sids").facts["level_sizes"])
    return min(config.data.max_history, items_that_fit(config.policy.max_tokens, num_levels))


def count_cut(config: Config, store: Store, splits: Sequence[str]) -> dict[str, int]:
    """Count the histories that do not fit into `policy.max_tokens`, as a fact for the manifest."""
    longest, num_cut = max_history(config, store), 0
    if longest < config.data.max_history:
        too_long = pc.list_value_length(pc.field("history")) > longest
        histories = artifacts.dataset_of(store, "histories")
        num_cut = histories.count_rows(filter=pc.field("split").isin(splits) & too_long)
    return {"num_cut_histories": num_cut}


def read_shard(name: str) -> Iterator[pa.Table]:
    """Stream this worker's shard of a dataset: the same rows in every run; shards are equal, so a few rows may be dropped."""
    return iter(ray.train.get_dataset_shard(name).iter_batches(batch_format="pyarrow", batch_size=4096))


def item_positions(trie: SidTrie, item_ids: pa.ChunkedArray, name: str = "histories") -> torch.Tensor:
    """Find the items of an artifact in the trie's order.

    Raises:
        ValueError: an item has no semantic ID.
    """
    found = build_id_index(trie.item_ids).find(item_ids)
    if (found < 0).any():
        missing = item_ids[int((found < 0).argmax())].as_py()
        raise ValueError(f"{name}: item {missing!r} has no semantic ID in item_sids; rebuild both from this run's items")
    return torch.from_numpy(found)


def read_valid(name: str, trie: SidTrie, max_examples: int, seed: int) -> ValidExamples:
    """Draw this worker's part of the validation examples."""
    context = ray.train.get_context()
    table = concat(["user_id", "prompt", "target"], read_shard(name))
    share = -(-max_examples // context.get_world_size())
    chosen = np.random.default_rng([seed, context.get_world_rank()]).permutation(len(table))[:share]
    table = table.take(pa.array(np.sort(chosen)))
    targets = item_positions(trie, table["target"], "histories")
    return ValidExamples(table["prompt"].to_pylist(), targets, table["user_id"].to_pylist())


def read_split(store: Store, name: str, split: str) -> Dataset:
    """Open one split of an artifact as a Ray Dataset."""
    return read_parts(store.uri(name), wanted=pc.field("split") == split)


def read_prompts(config: Config, store: Store, split: str) -> Dataset:
    """Return a Ray Dataset of the prompts of one split's histories, in the form of the SFT policy's training.

    Raises:
        ValueError: `policy.prompt_interests` has changed since that training.
    """
    learned = artifacts.require(store, "policy_sft").config
    wanted, found = config.policy.prompt_interests, learned.get("policy", {}).get("prompt_interests", 0)
    if wanted != found:
        raise ValueError(
            f"policy.prompt_interests = {wanted}, but the prompts of {store.uri('policy_sft')} had {found}; set it to {found}, "
            f"or run `digr train sft CONFIG --force`"
        )

    def convert(parts: pa.Table) -> Iterator[pa.Table]:
        for part in parts_in(parts):
            shown = shown_interests(learned, partial(read_part, store, "interest_labels", part))
            for histories in iter_users(store, "histories", part, BATCH_ROWS):
                chosen = pc.equal(histories["split"], split).combine_chunks()
                texts = shown.of_rows(histories).filter(chosen)
                yield prompt_examples(histories.filter(chosen), load_sids(store), config.data.max_history, texts)

    return part_dataset(parts_of(store, "user")).map_batches(convert, batch_size=None, batch_format="pyarrow")


def concat(columns: Sequence[str], batches: Iterator[pa.Table]) -> pa.Table:
    """Put string columns of batches into one table; no batch gives an empty one."""
    schema = pa.schema([(column, pa.string()) for column in columns])
    return pa.concat_tables([schema.empty_table(), *(batch.select(columns).cast(schema) for batch in batches)])


def reward_inputs(config: Config, options: Options) -> list[str]:
    """Return the artifacts that the reward reads besides labels and embeddings.

    Raises:
        ValueError: the reward uses canonical interests, but the run has none.
    """
    weight, store = reward_weights(config.grpo.reward)["canonical"], store_of(config)
    if weight and not options.dry_run and artifacts.read_manifest(store, "canonical_interests") is None:
        raise ValueError(
            f"grpo.reward.canonical = {weight:g} reads canonical interests, but {store.uri('canonical_interests')} does not "
            f"exist; run `digr neighbours CONFIG` first, or set grpo.reward.canonical = 0"
        )
    return ["items", "ranking_index"] if weight else []


def load_reward(config: Config, store: Store, trie: SidTrie, device: torch.device, user_ids: Sequence[str] = ()) -> RewardFn:
    """Return the reward function, with the qualities and interests that its weights need, in the trie's order.

    Args:
        user_ids: users of the prompts; their interests are embedded if the reward reads them.
    """
    weights = reward_weights(config.grpo.reward)
    table = artifacts.read_table(store, "interest_labels", ["owner_id", "quality"], owner=["item"])
    found, quality = torch.tensor(table["quality"].to_numpy()), torch.zeros(trie.num_items)
    quality[item_positions(trie, table["owner_id"], "interest_labels")] = found.float()
    vectors = _trusted_vectors(store, trie, device) if weights["interest"] or weights["user_interest"] else None
    canonical = _canonical_cosine(store, trie) if weights["canonical"] else None
    users = build_id_index(pa.array(sorted(set(user_ids) if weights["user_interest"] else ()), pa.string()))
    of_users = _user_vectors(config, store, users, device) if len(users) else None
    quality, codes, num_levels = quality.to(device), trie.codes.to(device), semantic_levels(store)

    def reward(
        rollouts: Rollouts, target_index: torch.Tensor, scores: torch.Tensor | None, user_ids: Sequence[str], /
    ) -> Rewards:
        terms = reward_terms(
            rollouts.codes,
            codes[target_index],
            rollouts.item_index,
            target_index,
            quality,
            interest_embeddings=vectors,
            user_embeddings=None if of_users is None else of_users[users.find_all(user_ids, "prompts")],
            canonical_cosine=canonical(rollouts.item_index, target_index) if canonical else None,
            num_levels=num_levels,
            scores=scores,
        )
        return Rewards(total_reward(terms, weights), terms)

    return reward


def _trusted_vectors(store: Store, trie: SidTrie, device: torch.device) -> torch.Tensor | None:
    """Read the unit vector of every item's trusted interests, zero for items without any; None if no item has any."""
    table = artifacts.read_table(store, "item_embeddings", ["item_id", "interest_embedding"])
    table = table.filter(table["interest_embedding"].is_valid())
    if not len(table):
        return None
    flat = table["interest_embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    vectors = torch.zeros(trie.num_items, flat.shape[1])
    vectors[item_positions(trie, table["item_id"], "item_embeddings")] = torch.tensor(flat)
    return vectors.to(device)


def _canonical_cosine(store: Store, trie: SidTrie) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a function of the cosine of roll-outs [B, G] and targets [B] by canonical interests of the finest grain."""
    items = build_id_index(artifacts.read_table(store, "items", ["item_id"])["item_id"])
    place, name = items.find_all(trie.item_ids, "items"), f"{SERVED.family}.groups.0"
    with artifacts.fetch_files(store.uri("ranking_index"), f"{name}.") as index:
        groups = load_arrays(InterestGroups, index, name)

    def cosine(item_index: torch.Tensor, target_index: torch.Tensor) -> torch.Tensor:
        both = (item_index.clamp(min=0), target_index[:, None].expand_as(item_index))
        found = profile_cosine(groups, *(place[index.cpu().numpy().ravel()] for index in both))
        return torch.from_numpy(found).reshape(item_index.shape).to(item_index.device)

    return cosine


def _user_vectors(config: Config, store: Store, users: IdIndex, device: torch.device) -> torch.Tensor:
    """Embed the trusted interests of users with the items' encoder; returns unit means, zero for a user without any."""
    labels = [read_part(store, "interest_labels", part) for part in parts_of(store, "user")]
    found = flat_interests(pa.concat_tables(part.filter(pc.is_in(part["owner_id"], users.ids)) for part in labels))
    found = found.filter(pc.equal(found["label"], 1))
    encoder = EncoderConfig.model_validate(artifacts.require(store, "item_embeddings").config["embeddings"]["encoder"])
    phrases = found["interest"].combine_chunks().dictionary_encode()
    encode = load_encoder(encoder, str(device), config.cluster.encode_batch_size)
    vectors = torch.from_numpy(encode(phrases.dictionary.to_pylist())[np.asarray(phrases.indices)]).to(device)
    means = torch.zeros(len(users), vectors.shape[1], device=device)
    means.index_add_(0, torch.from_numpy(users.find(found["owner_id"])).to(device), vectors)
    return torch.nn.functional.normalize(means, dim=-1)
