"""The trie at a million items: seconds and bytes to build, change and map it, and its share of a search.

The ratio is the share of a search outside the model (32 requests, beam 50, the default scratch policy): choosing each level's
beams, timed separately on random logits, over the whole search. Choosing includes the softmax and the top beams, so the trie's
own share is smaller. An assertion bounds the time to build. A changed trie (one item in a hundred new, as many gone) must equal
one built anew. The filters deny each request a hundred items.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.decoder_vs_transformers import HISTORY, LEVELS, random_trie, seconds_of
from benchmarks.harness import Bar, Measurement, main
from digr.config.policy import PolicyConfig
from digr.policy.decoding.choosing import first_beams, next_beams
from digr.policy.decoding.search import beam_search
from digr.policy.model import build_scratch_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.filters import ItemFilter, allow_and_deny
from digr.sids.trie import SidTrie, build_trie
from digr.sids.trie_file import map_trie, save_trie
from digr.sids.trie_updates import with_items

BAR = Bar(full=0.05, quick=0.05, quick_reason="a share of the same search, over a tenth of the items")
MAX_BUILD_SECONDS, MAX_MEGABYTES = 10.0, 64.0
REQUESTS, BEAMS = 32, 50


def num_bytes(trie: SidTrie) -> int:
    """Count the bytes of the index, without the item ids."""
    return sum(value.nbytes for value in (*trie, *trie.child_bits) if isinstance(value, torch.Tensor))


def choose(trie: SidTrie, logits: Sequence[torch.Tensor]) -> None:
    """Do all of a search but the model: the choice of each level's beams, on given logits."""
    beams = first_beams(trie, REQUESTS)
    for one in logits:
        beams = next_beams(trie, beams, one[:, : beams.code.shape[1]].contiguous(), BEAMS)


def changes(trie: SidTrie, codes: np.ndarray) -> dict[str, float]:
    """Time a change of one item in a hundred against building the changed catalogue."""
    ids, count = trie.item_ids, trie.num_items // 100
    before = build_trie(ids[count:], codes[count:], LEVELS)
    gone = before.item_ids[:count]
    change = partial(with_items, before, ids[:count], codes[:count], gone)
    changed, kept = change(), np.r_[0 : trie.num_items]
    kept = kept[~pc.is_in(ids, value_set=gone).to_numpy(zero_copy_only=False)]
    build = partial(build_trie, ids.take(pa.array(kept)), codes[kept], LEVELS)
    assert torch.equal(changed.codes, build().codes) and torch.equal(changed.node_key, build().node_key)
    return {"change_seconds": round(seconds_of(change, 3), 3), "changed_build_seconds": round(seconds_of(build, 3), 3)}


def file_form(trie: SidTrie) -> dict[str, float]:
    """Time writing and mapping the trie's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.safetensors"
        save = seconds_of(partial(save_trie, trie, path, "digest"), 3)
        return {"save_seconds": round(save, 3), "map_seconds": round(seconds_of(partial(map_trie, path, "digest"), 9), 5)}


def deny_some(num_items: int, rng: np.random.Generator) -> ItemFilter:
    """Deny each request a hundred items."""
    return allow_and_deny([None] * REQUESTS, list(rng.integers(num_items, size=(REQUESTS, 100))), num_items)


@torch.inference_mode()
def measure(quick: bool) -> Measurement:
    """Build a random trie, then time a search and its part outside the model."""
    rng, num_items = np.random.default_rng(0), 100_000 if quick else 1_000_000
    trie = random_trie(num_items, rng)
    codes = trie.codes.numpy()[rng.permutation(num_items)]
    build_seconds, megabytes = seconds_of(partial(build_trie, trie.item_ids, codes, LEVELS), 3), num_bytes(trie) / 1e6
    assert build_seconds <= MAX_BUILD_SECONDS and megabytes <= MAX_MEGABYTES, (build_seconds, megabytes)
    policy = build_scratch_policy(PolicyConfig(), LEVELS, seed=0).eval()
    texts = sid_texts(codes[: REQUESTS * HISTORY])
    prompts = [history_prompt(texts[start : start + HISTORY]) for start in range(0, len(texts), HISTORY)]
    search = seconds_of(partial(beam_search, policy, trie, prompts, BEAMS), 9)
    choice = seconds_of(partial(choose, trie, [torch.randn(REQUESTS, BEAMS, size) for size in LEVELS]), 9)
    allowed = deny_some(num_items, rng)
    filtered = seconds_of(partial(beam_search, policy, trie, prompts, BEAMS, allowed), 9)
    figures = {
        "items": num_items,
        "build_seconds": round(build_seconds, 2),
        "index_megabytes": round(megabytes, 1),
        **changes(trie, codes),
        **file_form(trie),
        "filter_megabytes_per_request": round((allowed.words.nbytes + allowed.before.nbytes) / REQUESTS / 1e6, 3),
        "filtered_search_ms": round(filtered * 1e3, 2),
        "search_ms": round(search * 1e3, 2),
        "choice_ms": round(choice * 1e3, 2),
    }
    return Measurement(figures, ratio=choice / search)


if __name__ == "__main__":
    main(measure, BAR)
