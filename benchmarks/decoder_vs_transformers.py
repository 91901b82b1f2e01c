"""Constrained beam search against `transformers.generate(num_beams, prefix_allowed_tokens_fn)`: same weights, same lists.

The peer is how public systems constrain decoding: a Python function that looks a prefix up in a dictionary, once per beam and
step. With `renormalize_logits` it also ranks by the probability normalised on the trie, and every list is compared. All prompts
have ten items and one length, because the peer would need left padding otherwise. Each side is timed with one PyTorch thread
and with one per core, in turns; its faster setting counts. A speed-up is the median over the rounds.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness import Bar, Measurement, main
from digr.config.policy import PolicyConfig
from digr.policy.decoding.search import recommend
from digr.policy.model import SidPolicy, build_scratch_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.trie import ROOT, SidTrie, build_trie

Allowed = Callable[[int, torch.Tensor], list[int]]
"""What `generate` asks for every beam: (row, tokens so far) to the tokens that may follow."""

BAR = Bar(
    full=10.0,
    quick=10.0,
    better="at_least",
    quick_reason="the smallest catalogue alone, in which the speed-up is the largest, measured as in the full form",
)
LEVELS = (256, 256, 256)
HISTORY = 10
CATALOGUES = (3_700, 100_000, 1_000_000)
BEAMS = (10, 20, 50)
BATCHES = (1, 32)
ROUNDS = 9
TIE = 1e-4
"""Log-probabilities of items that may change places, as sums in another order give them."""


def random_trie(num_items: int, rng: np.random.Generator, levels: tuple[int, ...] = LEVELS) -> SidTrie:
    """Build a trie of distinct random SIDs."""
    keys = rng.choice(int(np.prod(levels)), num_items, replace=False)
    codes = np.stack(np.unravel_index(keys, levels), 1).astype(np.int32)
    return build_trie(pa.array(keys).cast(pa.string()), codes, levels)


def random_prompts(trie: SidTrie, count: int, rng: np.random.Generator) -> list[str]:
    """Write histories of random items, all of one length."""
    texts = sid_texts(trie.codes.cpu()[torch.from_numpy(rng.integers(trie.num_items, size=count * HISTORY))].numpy())
    return [history_prompt(texts[start : start + HISTORY]) for start in range(0, len(texts), HISTORY)]


def allowed_tokens(policy: SidPolicy, trie: SidTrie, prompt_length: int) -> Allowed:
    """Return the function that `generate` asks for every beam: it looks a prefix up in a dictionary.

    A prefix enters the dictionary when it is first asked for: to enter all takes minutes at millions of items.
    """
    children: dict[tuple[int, ...], list[int]] = {}
    tokens, code_of = [policy.token_ids(level).tolist() for level in range(trie.num_levels)], policy.token_code.tolist()

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        prefix = tuple(ids[prompt_length:].tolist())
        if prefix not in children:
            node = torch.tensor([ROOT], device=trie.codes.device)
            for token in prefix:
                node = trie.child(node, torch.full_like(node, code_of[token]))
            children[prefix] = [tokens[len(prefix)][code] for code in trie.node_code[trie.children(node)[0]].tolist()]
        return children[prefix]

    return allowed


def peer_lists(policy: SidPolicy, trie: SidTrie, prompts: Sequence[str], beams: int, allowed: Allowed) -> list[list[str]]:
    """Decode with `transformers` and turn the tokens into items."""
    input_ids, mask = policy.tokenize(prompts)
    sequences = policy.lm.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=mask,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=trie.num_levels,
        min_new_tokens=trie.num_levels,
        do_sample=False,
        early_stopping=True,
        use_cache=True,
        renormalize_logits=True,
        prefix_allowed_tokens_fn=allowed,
        pad_token_id=policy.tokenizer.pad_token_id,
    )
    codes = policy.token_code[sequences[:, input_ids.shape[1] :]]
    node = torch.zeros_like(codes[:, 0])
    for level in range(trie.num_levels):
        node = trie.child(node, codes[:, level])
    return np.array(trie.item_ids.take(trie.item_start[node].numpy(force=True))).reshape(len(prompts), beams).tolist()


def equal_but_for_ties(mine: list[str], items: list[str], scores: list[float]) -> bool:
    """Whether two lists differ only in the order of items with (nearly) equal scores; `items` may be longer."""
    known = dict(zip(items, scores, strict=True))
    return all(item in known and abs(known[item] - scores[place]) < TIE for place, item in enumerate(mine))


class Timing(NamedTuple):
    """Median seconds of one side with its best number of threads, and the seconds of each round."""

    seconds: float
    threads: int
    rounds: list[float]


def best_timings(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[Timing, Timing]:
    """Time both sides in turns, so that a slow moment of the machine meets both."""
    before, found = torch.get_num_threads(), defaultdict[tuple[int, int], list[float]](list)
    for _ in range(ROUNDS):
        for threads in sorted({1, num_cores()}):
            torch.set_num_threads(threads)
            found[0, threads].append(seconds_of(ours, 5))
            found[1, threads].append(seconds_of(peer, 1))
    torch.set_num_threads(before)
    timings = [
        [Timing(float(np.median(rounds)), threads, rounds) for (of, threads), rounds in found.items() if of == side]
        for side in (0, 1)
    ]
    return min(timings[0]), min(timings[1])


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of some calls, after a first one."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


@torch.inference_mode()
def measure(quick: bool) -> Measurement:
    """Time both on every catalogue, beam width and batch size; the ratio is the smallest speed-up at the widest beam."""
    rng, figures, ratios = np.random.default_rng(0), dict[str, float](), []
    policy = build_scratch_policy(PolicyConfig(), LEVELS, seed=0).eval()
    for num_items in CATALOGUES[:1] if quick else CATALOGUES:
        trie = random_trie(num_items, rng)
        prompts = random_prompts(trie, max(BATCHES), rng)
        allowed = allowed_tokens(policy, trie, policy.tokenize(prompts[:1])[0].shape[1])
        for beams in BEAMS[-1:] if quick else BEAMS:
            for batch in BATCHES:
                some = prompts[:batch]
                ours = [found.item_ids for found in recommend(policy, trie, some, beams, beams)]
                same = np.mean([a == b for a, b in zip(ours, peer_lists(policy, trie, some, beams, allowed), strict=True)])
                assert same == 1.0, f"{num_items} items, beam {beams}, batch {batch}: {same:.0%} of the lists are equal"
                fast, slow = best_timings(
                    partial(recommend, policy, trie, some, beams, beams), partial(peer_lists, policy, trie, some, beams, allowed)
                )
                name = f"{num_items}_items_beam_{beams}_batch_{batch}"
                ratio = float(np.median(np.array(slow.rounds) / np.array(fast.rounds)))
                figures |= {f"{name}_ms": round(fast.seconds * 1e3, 2), f"{name}_threads": fast.threads}
                figures |= {f"{name}_transformers_ms": round(slow.seconds * 1e3, 2), f"{name}_transformers_threads": slow.threads}
                figures[f"{name}_speedup"] = round(ratio, 1)
                if beams == BEAMS[-1]:
                    ratios.append(ratio)
    return Measurement(figures, ratio=min(ratios))


if __name__ == "__main__":
    main(measure, BAR)
