"""Semantic IDs of your own vectors, and how good they are."""

# %% 300 vectors in 12 groups, as an encoder would give them
import tempfile
from pathlib import Path

import numpy as np

from digr import SidsConfig, assign_sids, build_trie, describe_sids, fit_quantiser, load_quantiser, save_quantiser

rng = np.random.default_rng(0)
group = np.arange(300) % 12
vectors = (rng.normal(size=(12, 16))[group] + 0.3 * rng.normal(size=(300, 16))).astype(np.float32)
item_ids = [f"item-{number}" for number in range(300)]

# %% fit the codebooks of two levels; `quantiser="rqvae"` trains an RQ-VAE instead
config = SidsConfig(quantiser="rkmeans", level_sizes=(16, 32))
quantiser = fit_quantiser(vectors, config, seed=0, report=print)

# %% give every vector its codes; items whose codes are equal move to free ones, and get a suffix code only where none is left
assigned = assign_sids(quantiser, lambda: [vectors], seed=0)
print("SIDs of the first three items:", assigned.codes[:3].tolist())

# %% the diagnostics, one entry per level where they are lists
facts = describe_sids(quantiser, assigned, vectors, np.arange(300))
print(f"codes in use: {[f'{rate:.0%}' for rate in facts['usage_rate']]}, as even as {facts['perplexity']} codes used alike")
print(f"items that shared their nearest codes: {facts['raw_collision_rate']:.0%}, now: {facts['collision_rate']:.0%}")
print(f"variance that the codes keep: {facts['reconstruction_r2']:.0%}")
near, chance = facts["neighbour_prefix_share"][0], facts["chance_prefix_share"][0]
print(f"near neighbours share their first code in {near:.0%} of pairs, any two items in {chance:.0%}")

# %% how far the first code stands for the groups that the vectors were made of
purity = np.mean([np.bincount(group[assigned.codes[:, 0] == code]).max(initial=0) for code in range(16)]) * 16 / 300
print(f"items that belong to the main group of their first code: {purity:.0%}")

# %% keep the quantiser: new items get codes of the same codebooks, and a trie serves them all
with tempfile.TemporaryDirectory() as folder:
    save_quantiser(quantiser, Path(folder))
    again = load_quantiser(Path(folder)).assign(vectors[:3])
print("the same codes after loading:", bool((again == assigned.nearest[:3]).all()))
print("prefixes in the trie:", len(build_trie(item_ids, assigned.codes, assigned.level_sizes).node_code))
