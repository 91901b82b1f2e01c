"""The reward's term of canonical interests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import apply_overrides, build_config
from digr.policy.training.rollouts import Rollouts
from digr.ranking.groups import InterestGroups, group_items
from digr.ranking.views import save_arrays
from digr.sids.trie import load_trie
from jobs import train_grpo
from jobs.runtime.session import Options
from jobs.training.policy_data import load_reward, reward_inputs
from tests.nested_interests import nest_rows
from tests.serve.tiny_run import NUM_ITEMS, put, write_run

WEIGHT = {"grpo": {"reward": {"interest": 0, "canonical": 0.25}}}


def _write(root: str) -> tuple[Store, InterestGroups]:
    """Write a run whose items have up to three of seven canonical interests; item 9 has none."""
    store, rng = write_run(root), np.random.default_rng(0)
    item = np.repeat(np.arange(NUM_ITEMS), 3)
    kept = item != 9
    groups = group_items(item[kept], rng.integers(0, 7, len(item))[kept], rng.random(len(item))[kept], NUM_ITEMS, 7)
    folder = artifacts.begin(store, "ranking_index")
    save_arrays(Path(folder), groups, "interests.groups.0")
    artifacts.commit(store, Manifest(name="ranking_index"))
    ids = artifacts.read_table(store, "items")["item_id"].to_pylist()
    quality = [number % 5 / 4 for number in range(NUM_ITEMS)]
    put(store, "interest_labels", nest_rows("interest_labels", [], ids, quality=quality))
    return store, groups


def _config(store: Store, **sections):
    return build_config({"run": {"dir": store.root}, "sids": {"level_sizes": "auto"}} | sections, where="test")


def test_a_roll_out_earns_the_cosine_of_its_canonical_interests_with_the_targets_times_its_quality(tmp_path):
    store, groups = _write(str(tmp_path))
    trie, rng = load_trie(store), np.random.default_rng(1)
    ids = trie.item_ids.to_pylist()
    rolled, wanted = rng.integers(0, NUM_ITEMS, (6, 5)), rng.integers(0, NUM_ITEMS, 6)
    rolled[0, :2], wanted[0], rolled[1] = (9, 0), 0, wanted[1]  # one without any interest, and the target itself
    place = {item: ids.index(f"item{item:02d}") for item in range(NUM_ITEMS)}
    index, targets = torch.tensor([[place[one] for one in row] for row in rolled]), torch.tensor([place[one] for one in wanted])
    codes = trie.codes[index]
    index[2, 3], codes[2, 3] = -1, -1
    dense = np.zeros((NUM_ITEMS, 7))
    for item in range(NUM_ITEMS):
        inside = slice(groups.start[item], groups.start[item + 1])
        dense[item, groups.group[inside]] = groups.profile[inside]
    expected = torch.from_numpy(np.einsum("bgk,bk->bg", dense[rolled], dense[wanted]) * (rolled % 5 / 4)).float()
    expected[2, 3] = 0
    reward = load_reward(_config(store, **WEIGHT), store, trie, torch.device("cpu"))
    found = reward(Rollouts(codes, index), targets, None, [])
    torch.testing.assert_close(found.terms["canonical"], expected, atol=1e-6, rtol=0)
    assert found.terms["canonical"][0].tolist()[0] == 0 and len(set(expected.ravel().tolist())) > 10
    torch.testing.assert_close(found.total, found.terms["exact"] + 0.25 * expected, atol=1e-6, rtol=0)


def test_a_reward_without_the_term_reads_no_canonical_interests(tmp_path):
    store, _ = _write(str(tmp_path))
    artifacts.remove(store.uri("ranking_index"))
    trie, index = load_trie(store), torch.tensor([[0, 1]])
    config = _config(store, grpo={"reward": {"interest": 0}})
    found = load_reward(config, store, trie, torch.device("cpu"))(Rollouts(trie.codes[index], index), index[:, 0], None, [])
    assert not found.terms["canonical"].any()
    assert reward_inputs(config, Options()) == []


def test_a_run_without_canonical_interests_names_the_job_that_makes_them(tmp_path):
    store, _ = _write(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"grpo\.reward\.canonical = 0\.25 .*canonical_interests does not exist; run `digr neighbours CONFIG`"
    ):
        train_grpo.run(_config(store, **WEIGHT), Options())
    assert reward_inputs(_config(store, **WEIGHT), Options(dry_run=True)) == ["items", "ranking_index"]
    put(store, "canonical_interests", {"interest": [], "num_items": [], "groups": [], "names": []})
    assert reward_inputs(_config(store, **WEIGHT), Options()) == ["items", "ranking_index"]


def test_a_variant_that_is_never_ranked_cannot_weigh_canonical_interests():
    config = build_config({"run": {"dir": "x"}} | WEIGHT, where="test")
    with pytest.raises(
        ValueError, match=r"grpo\.reward\.canonical = 0\.25 reads canonical interests, but ranking\.enabled = false"
    ):
        apply_overrides(config, {"ranking.enabled": False})
    assert not apply_overrides(config, {"ranking.enabled": False, "grpo.enabled": False}).ranking.enabled
