"""A trie over semantic IDs, and beam search in it with the logits of your own model."""

# %% a catalogue of six films: items that are alike begin with the same codes
import numpy as np
import torch

from digr import Beams, build_trie, first_beams, keep_best, next_beams, rank_items

films = ["alien", "blade runner", "casablanca", "notorious", "paris, texas", "solaris"]
codes = np.array([[0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 2], [1, 1, 0], [0, 1, 0]])
trie = build_trie(films, codes, level_sizes=[2, 2, 3])

# %% which codes may follow a prefix
node = trie.child(torch.tensor([0]), torch.tensor([0]))  # node 0 is the root; this one stands for the prefix (0,)
print("codes that may follow (0, 0):", trie.allowed_mask(trie.child(node, torch.tensor([0])), level=2)[0].tolist())


# %% your model: for each prefix, the logits of the next code. This one knows a table; yours may be any network
def next_code_logits(prefixes: torch.Tensor, level: int) -> torch.Tensor:
    """Return float [prefixes, codes of the level]; prefixes are int [prefixes, level]."""
    generator = torch.Generator().manual_seed(level)
    table = torch.randn(2**level, trie.level_sizes[level], generator=generator)
    return table[(prefixes * 2 ** torch.arange(level)).sum(1)]


# %% beam search over distinct real items: the model is asked about open prefixes alone, and never about impossible codes
def search(beam_width: int) -> Beams:
    """Search for one request, level by level."""
    beams, dropped = first_beams(trie, num_rows=1), torch.tensor([-torch.inf])
    for level in range(trie.num_levels):
        open_nodes = beams.node[beams.is_open]
        if not len(open_nodes):
            break  # each beam has one item below it
        logits = next_code_logits(trie.sids(open_nodes)[:, :level], level)
        beams, best = keep_best(next_beams(trie, beams, logits[None], beam_width + 1), beam_width)
        dropped = torch.maximum(dropped, best)
    return Beams(beams.node, beams.score, dropped)


ranking = rank_items(trie, search(beam_width=3), width=3)
for place, score in zip(ranking.item_index[0].tolist(), ranking.score[0].tolist(), strict=True):
    print(f"{trie.item_ids[place].as_py()}: probability {np.exp(score):.3f}")

# %% what the beams dropped is a bound: where the last item beats it, the list is exactly the model's top three
print("proven to be the top 3:", bool(ranking.score[0, -1] >= ranking.dropped[0]))
everything = rank_items(trie, search(beam_width=6), width=6)
print(f"probabilities of all items sum to {everything.score.exp().sum():.3f}")
