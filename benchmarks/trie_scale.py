"""The trie at a million items: seconds and bytes to build it, and the share of a decoding step that its masks take.

The ratio is the masks' share: every `allowed_mask` and `child` call of a search, timed again on the nodes it saw, against
the whole search (32 requests, beam 50, the default scratch policy). Building is bounded by an assertion of its own.
"""

import time
from functools import partial

import numpy as np
import torch

from benchmarks.decoder_vs_transformers import HISTORY, LEVELS, random_trie, seconds_of
from benchmarks.harness import Measurement, main
from digr.config.policy import PolicyConfig
from digr.policy.beam import beam_search
from digr.policy.model import build_scratch_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import SidTrie, build_trie

BAR = 0.05
MAX_BUILD_SECONDS, MAX_MEGABYTES = 10.0, 64.0
REQUESTS, BEAMS = 32, 50


def num_bytes(trie: SidTrie) -> int:
    """Count the bytes of the index; the ids of the items are not its own."""
    return sum(value.nbytes for value in (*trie, *trie.child_bits) if isinstance(value, torch.Tensor))


def walk(trie: SidTrie, codes: torch.Tensor) -> None:
    """Mask and follow what a search that ended in `codes` [B, M, L] masks and follows."""
    node = torch.zeros(codes.shape[:2], dtype=torch.long)
    for level in range(trie.num_levels):
        asked = node[:, :1] if level == 0 else node
        trie.allowed_mask(asked.flatten(), level)
        node = trie.child(node, codes[..., level])


@torch.inference_mode()
def measure(quick: bool) -> Measurement:
    """Build a random trie, then time a search and the trie's part of it."""
    rng, num_items = np.random.default_rng(0), 100_000 if quick else 1_000_000
    trie = random_trie(num_items, rng)
    codes = trie.codes.numpy()[rng.permutation(num_items)]
    start = time.perf_counter()
    build_trie(trie.item_ids, codes, LEVELS)
    build_seconds, megabytes = time.perf_counter() - start, num_bytes(trie) / 1e6
    assert build_seconds <= MAX_BUILD_SECONDS and megabytes <= MAX_MEGABYTES, (build_seconds, megabytes)
    policy = build_scratch_policy(PolicyConfig(), LEVELS, seed=0).eval()
    texts = sid_texts(codes[: REQUESTS * HISTORY])
    prompts = [history_prompt(texts[start : start + HISTORY]) for start in range(0, len(texts), HISTORY)]
    found = beam_search(policy, trie, prompts, BEAMS)
    search = seconds_of(partial(beam_search, policy, trie, prompts, BEAMS), 9)
    masks = seconds_of(partial(walk, trie, found.codes.long()), 9)
    figures = {
        "items": num_items,
        "build_seconds": round(build_seconds, 2),
        "index_megabytes": round(megabytes, 1),
        "search_ms": round(search * 1e3, 2),
        "masks_ms": round(masks * 1e3, 2),
    }
    return Measurement(figures, ratio=masks / search, bar=BAR)


if __name__ == "__main__":
    main(measure)
