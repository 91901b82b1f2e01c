"""A history that grows item by item: decoding with a cache of encoded prompts against decoding without; the lists are equal.

A user's history grows from 30 to 50 items; each length is one request, decoded without the cache, with it, and with it once
more, when the whole prompt is cached (beam 50, the default scratch policy, 100,000 items). The ratio is the median time of the
first cached decoding over that without the cache. Both use one thread and take turns.
"""

import time

import numpy as np
import torch

from benchmarks.decoder_vs_transformers import LEVELS, random_trie
from benchmarks.harness import Bar, Measurement, main
from digr.config.policy import PolicyConfig
from digr.policy.decoding.contexts import ContextCache
from digr.policy.decoding.search import recommend
from digr.policy.model import build_scratch_policy
from digr.policy.vocabulary import history_prompt, sid_texts

BAR = Bar(
    full=0.8,
    quick=0.9,
    quick_reason="two users' requests and a smaller index: the median is less sure, a grown history is still the faster",
)
BEAMS, FIRST, LAST = 50, 30, 50


@torch.inference_mode()
def measure(quick: bool) -> Measurement:
    """Let some users' histories grow, and time every request with and without the cache."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    trie = random_trie(10_000 if quick else 100_000, rng)
    policy = build_scratch_policy(PolicyConfig(), LEVELS, seed=0).eval()
    cache = ContextCache(policy, 1 << 28)
    plain, grown, known = list[float](), list[float](), list[float]()
    for _ in range(2 if quick else 10):
        texts = sid_texts(trie.codes[torch.from_numpy(rng.integers(trie.num_items, size=LAST))].numpy())
        recommend(policy, trie, [history_prompt(texts[:FIRST])], BEAMS, BEAMS, cache=cache)
        for length in range(FIRST + 1, LAST + 1):
            prompt = [history_prompt(texts[:length])]
            lists = []
            for times, used in ((plain, None), (grown, cache), (known, cache)):
                start = time.perf_counter()
                lists.append(recommend(policy, trie, prompt, BEAMS, BEAMS, cache=used)[0].item_ids)
                times.append(time.perf_counter() - start)
            assert lists[0] == lists[1] == lists[2]
    figures = {
        f"{name}_ms": round(float(np.median(times)) * 1e3, 2)
        for name, times in (("no_cache", plain), ("grown", grown), ("known", known))
    }
    figures["cache_megabytes_per_user"] = round(cache.num_bytes / len(cache) / 1e6, 3)
    return Measurement(figures, ratio=float(np.median(grown) / np.median(plain)))


if __name__ == "__main__":
    main(measure, BAR)
