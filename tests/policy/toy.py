"""A tiny shop in which item i is always followed by item i + 1: what a policy must learn is known."""

import numpy as np
import pyarrow as pa
import torch

from digr.config.policy import PolicyConfig
from digr.policy.model import SidPolicy, build_scratch_policy
from digr.policy.training.batches import Texts, TokenSequences, pack_sequences
from digr.policy.training.validation import ValidExamples
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import SidTrie, build_trie

NUM_ITEMS = 24
LEVEL_SIZES = (4, 4, 2)


def toy_trie() -> SidTrie:
    """Items 0 to 23 on a 4 x 4 x 2 code space; every third has a suffix only where it collides."""
    codes = np.array([[item % 4, item // 4 % 4, -1] for item in range(16)] + [[item % 4, item // 4 % 4, 1] for item in range(8)])
    codes[:8, 2] = 0
    return build_trie([f"i{item:02d}" for item in range(NUM_ITEMS)], codes, LEVEL_SIZES)


def toy_policy(dropout: float = 0.0, seed: int = 0) -> SidPolicy:
    """A decoder of a few thousand weights."""
    return build_scratch_policy(
        PolicyConfig(hidden_dim=32, num_layers=1, num_heads=2, dropout=dropout, max_tokens=64), LEVEL_SIZES, seed
    )


def _texts(trie: SidTrie) -> dict[int, str]:
    texts = sid_texts(trie.codes.numpy())
    return {int(item[1:]): texts[index] for index, item in enumerate(trie.item_ids.to_pylist())}


def toy_sequences(policy: SidPolicy, trie: SidTrie, num: int = 64, length: int = 5) -> TokenSequences:
    """Sequences of consecutive items from random starts."""
    texts, rng = _texts(trie), np.random.default_rng(0)
    starts = rng.integers(0, NUM_ITEMS, num)
    prompts = [texts[start] for start in starts]
    completions = ["".join(texts[(start + step) % NUM_ITEMS] for step in range(1, length - start % 2)) for start in starts]
    return pack_sequences(policy.tokenizer, [Texts(prompts, completions)], 64)


def toy_prompts(trie: SidTrie) -> tuple[list[str], list[str], torch.Tensor]:
    """Ids, prompts of two items, and the positions of their successors, one for every item of the shop."""
    texts, items = _texts(trie), trie.item_ids.to_pylist()
    ids = [f"e{item}" for item in range(NUM_ITEMS)]
    prompts = [history_prompt([texts[item], texts[(item + 1) % NUM_ITEMS]]) for item in range(NUM_ITEMS)]
    targets = [items.index(f"i{(item + 2) % NUM_ITEMS:02d}") for item in range(NUM_ITEMS)]
    return ids, prompts, torch.tensor(targets)


def toy_valid(trie: SidTrie) -> ValidExamples:
    """Every item's successor."""
    _, prompts, targets = toy_prompts(trie)
    return ValidExamples(prompts, targets)


def strings(values: list[str]) -> pa.Array:
    """Arrow strings."""
    return pa.array(values, pa.string())
