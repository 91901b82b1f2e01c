"""Beam search with dense masks in plain transformers: what an engineer writes for a GPU without a trie.

Each level has a table with a row per node: for each code the index of its child at the next level, or -1 where there is none.
The keys and values of the prompt are copied for each beam, and reordered with the beams.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from digr.policy.model import SidPolicy
from digr.sids.trie import NO_NODE, SidTrie


def dense_tables(trie: SidTrie) -> list[Int[Tensor, "P K"]]:
    """Lay the trie out as one dense table per level; every SID must have all levels."""
    tables = []
    for level, size in enumerate(trie.level_sizes):
        start = trie.level_start[level]
        end = trie.level_start[level + 1] if level + 1 < trie.num_levels else int(trie.first_child[trie.level_start[-1]])
        count = trie.num_children[start:end]
        parent = torch.arange(end - start, device=count.device).repeat_interleave(count)
        child = int(trie.first_child[start]) + torch.arange(len(parent), device=count.device)
        table = torch.full((end - start, size), NO_NODE, dtype=torch.int32, device=count.device)
        table[parent, trie.node_code[child].long()] = child.int()
        tables.append(table)
    return tables


@torch.inference_mode()
def dense_lists(
    policy: SidPolicy, trie: SidTrie, tables: Sequence[Int[Tensor, "P K"]], prompts: Sequence[str], beams: int
) -> list[list[str]]:
    """Return the items of the best beams after each prompt; all prompts have one length, every SID one item."""
    from transformers import DynamicCache

    input_ids, _ = policy.tokenize(prompts)
    cache, decoder = DynamicCache(), policy.lm.get_decoder()
    hidden = decoder(input_ids=input_ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    rows = torch.arange(len(prompts), device=input_ids.device)[:, None]
    node, score = torch.zeros_like(rows), torch.zeros(len(prompts), 1, device=rows.device)
    for level, table in enumerate(tables):
        child = table[(node - trie.level_start[level]).clamp(min=0)].long()
        logits = policy.code_logits(hidden, level).masked_fill(child < 0, -torch.inf)
        grown = (score[..., None] + torch.log_softmax(logits, -1)).flatten(1)
        score, place = grown.topk(min(beams, grown.shape[1]), dim=1)
        node, width = child.flatten(1).gather(1, place), child.shape[1]
        if level + 1 < len(tables):
            cache.reorder_cache((rows * width + place // table.shape[1]).flatten())  # type: ignore[arg-type]
            tokens = policy.token_ids(level)[place % table.shape[1]]
            state = decoder(input_ids=tokens.view(-1, 1), past_key_values=cache, use_cache=True).last_hidden_state
            hidden = state.view(len(prompts), -1, state.shape[-1])
    found = trie.item_ids.take(trie.item_start[node.clamp(min=0)].flatten().numpy(force=True)).to_pylist()
    width = node.shape[1]
    kept = (score > -torch.inf).sum(1).tolist()
    return [found[row * width : row * width + count] for row, count in enumerate(kept)]
