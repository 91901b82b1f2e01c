"""A mapped trie with added items answers like one that is built of all items."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from digr.config.policy import PolicyConfig
from digr.policy.decoding import choosing
from digr.policy.decoding.search import recommend
from digr.policy.model import build_scratch_policy
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.serving.grown_trie import map_grown_trie, save_trie_arrays
from digr.serving.tree import children_of, places_below
from digr.sids.trie import SidTrie, build_trie

SIZES = (5, 4, 6, 3)


def _codes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw distinct SIDs, of which none is a prefix of another: below some tuples all have a suffix, below others none."""
    numbers = rng.permutation(5 * 4 * 6)[:count]
    rows = []
    for number in numbers.tolist():
        start = [number // 24, number // 6 % 4, number % 6]
        suffixes = rng.permutation(3)[: rng.integers(1, 4)].tolist() if number % 3 == 0 else [-1]
        rows += [[*start, suffix] for suffix in suffixes]
    return rng.permutation(np.array(rows, np.int32))


def _both(folder, seed: int, num_added: int) -> tuple[SidTrie, SidTrie]:
    rng = np.random.default_rng(seed)
    codes = _codes(rng, 50 if seed % 2 else 4)
    ids = pa.array([f"i{row:03d}" for row in range(len(codes))])
    num = max(1, len(codes) - num_added)
    save_trie_arrays(folder, build_trie(ids[:num], codes[:num], SIZES))
    order = num + np.lexsort(codes[num:].T[::-1])
    return map_grown_trie(folder, ids.take(pa.array(order)), codes[order]), build_trie(ids, codes, SIZES)


def _as_ids(trie: SidTrie, prefix: list[int]) -> dict:
    found = children_of(trie, prefix)
    below = [sorted(trie.item_ids.take(pa.array(places_below(spans))).to_pylist()) for spans in found.spans]
    return {"codes": found.codes, "leaf": found.is_leaf, "below": below, "num": found.num_items}


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("num_added", [0, 1, 2, 9, 40])
@pytest.mark.parametrize("seed", range(4))
def test_a_grown_trie_gives_the_lists_and_the_tree_of_a_built_one(tmp_path, monkeypatch, seed, num_added, compiles):
    monkeypatch.setattr(choosing, "COMPILES", compiles)
    grown, built = _both(tmp_path, seed, num_added)
    assert sorted(grown.item_ids.to_pylist()) == sorted(built.item_ids.to_pylist())
    for code in [[], *([one] for one in range(5)), *([one, two] for one in range(5) for two in range(4))]:
        try:
            expected = _as_ids(built, code)
        except ValueError:
            with pytest.raises(ValueError, match="no semantic ID of the catalogue begins with it"):
                children_of(grown, code)
            continue
        assert _as_ids(grown, code) == expected
    chosen = PolicyConfig(hidden_dim=32, num_layers=1, num_heads=2, max_tokens=32)
    policy = build_scratch_policy(chosen, list(SIZES), seed=seed).eval()
    prompts = [history_prompt(sid_texts(built.codes[row : row + 2].numpy())) for row in range(3)]
    width = min(8, built.num_items)
    wanted = np.random.default_rng(seed).random((3, built.num_items)) < 0.3
    wanted[:, 0] = True
    place = {item: number for number, item in enumerate(built.item_ids.to_pylist())}
    order = [place[item] for item in grown.item_ids.to_pylist()]
    for mask in (None, wanted):
        one = recommend(policy, built, prompts, width, width, allowed=None if mask is None else torch.from_numpy(mask))
        two = recommend(
            policy, grown, prompts, width, width, allowed=None if mask is None else torch.from_numpy(mask[:, order].copy("C"))
        )
        assert [found.item_ids for found in two] == [found.item_ids for found in one]
        assert [found.scores for found in two] == [pytest.approx(found.scores, abs=1e-5) for found in one]


def test_items_that_share_a_semantic_id_are_all_listed(tmp_path):
    codes = np.array([[0, 0, 0, -1], [0, 1, 0, -1]], np.int32)
    save_trie_arrays(tmp_path, build_trie(["a", "b"], codes, SIZES))
    grown = map_grown_trie(tmp_path, pa.array(["c", "d"]), np.array([[0, 1, 0, -1], [0, 1, 0, -1]], np.int32))
    policy = build_scratch_policy(PolicyConfig(hidden_dim=32, num_layers=1, num_heads=2, max_tokens=32), list(SIZES), seed=0)
    (found,) = recommend(policy.eval(), grown, [history_prompt(sid_texts(codes[:1]))], 4, 4)
    assert sorted(found.item_ids) == ["a", "b", "c", "d"]
    of = dict(zip(found.item_ids, found.scores, strict=True))
    assert of["b"] == of["c"] == of["d"]
    assert np.exp([of["b"], of["a"]]) @ [3, 1] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 0, 0, 1]], "the SID of an item of the catalogue is a prefix of that of an added item"),
        ([[0, 1, -1, -1]], "the SID of item 'n0' is a prefix of that of another item"),
        ([[2, -1, -1, -1], [2, 1, -1, -1]], "the SID of item 'n0' is a prefix of that of another item"),
        ([[9, 0, 0, 0]], "codes must be in"),
    ],
)
def test_a_semantic_id_that_begins_another_is_refused(tmp_path, codes, message):
    save_trie_arrays(tmp_path, build_trie(["a", "b"], np.array([[0, 0, 0, -1], [0, 1, 0, 2]]), SIZES))
    with pytest.raises(ValueError, match=message):
        map_grown_trie(tmp_path, pa.array([f"n{row}" for row in range(len(codes))]), np.array(codes, np.int32))


def test_growing_changes_neither_the_files_nor_another_mapping(tmp_path):
    codes = np.array([[0, 0, 0, -1], [0, 1, 0, 2], [3, 1, 0, 2]], np.int32)
    save_trie_arrays(tmp_path, build_trie(["a", "b", "c"], codes, SIZES))
    none, before = np.zeros((0, 4), np.int32), {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    empty = map_grown_trie(tmp_path, pa.array([], pa.string()), none)
    grown = map_grown_trie(tmp_path, pa.array(["d"]), np.array([[1, 1, 1, -1]], np.int32))
    again = map_grown_trie(tmp_path, pa.array([], pa.string()), none)
    assert (grown.num_items, empty.num_items, again.num_items) == (4, 3, 3)
    assert children_of(empty, []).codes == children_of(again, []).codes == [0, 3]
    assert children_of(grown, []).codes == [0, 1, 3]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
