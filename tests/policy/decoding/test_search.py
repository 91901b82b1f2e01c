"""The decoder is exact: it agrees with scoring every SID of the catalogue, in any batch and under any filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.config.policy import PolicyConfig
from digr.policy.decoding.contexts import encode
from digr.policy.decoding.search import beam_search, rank_items, recommend
from digr.policy.decoding.steps import BranchBias
from digr.policy.model import SidPolicy, build_scratch_policy, load_policy
from digr.policy.training.rollouts import rollout
from digr.policy.vocabulary import history_prompt, sid_texts
from digr.sids.filters import allow_and_deny
from digr.sids.trie import SidTrie, build_trie
from tests.sids.catalogues import catalogues

SIZES = (5, 4, 6, 3)


def _catalogue(seed: int) -> tuple[SidTrie, SidPolicy]:
    """Some 50 items, a few of which collide on three levels, and a random policy."""
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, [5, 4, 6], (60, 3)), axis=0)
    codes = np.concatenate([codes, np.full((len(codes), 1), -1)], 1)
    colliding = codes[:4].copy()
    codes[:4, 3], colliding[:, 3] = 0, [1, 1, 2, 1]
    codes = np.concatenate([codes, colliding])
    policy = build_scratch_policy(PolicyConfig(hidden_dim=32, num_layers=2, num_heads=2), SIZES, seed).eval()
    with torch.no_grad():  # sharpen, so that items differ
        for parameter in policy.lm.get_input_embeddings().parameters():
            parameter.mul_(20)
    return build_trie([f"i{index}" for index in range(len(codes))], codes, SIZES), policy


def _prompts(trie: SidTrie) -> list[str]:
    texts = sid_texts(trie.codes.numpy())
    return [history_prompt(texts[:5]), history_prompt(texts[9:10]), history_prompt(texts[20:23])]


def _every_score(policy: SidPolicy, trie: SidTrie, prompt: str) -> torch.Tensor:
    """Score each item by itself, as one plain sequence without branches or cache."""
    scores = []
    for text in sid_texts(trie.codes.numpy()):
        input_ids, real = policy.tokenize([prompt + text])
        completion = torch.zeros_like(real)
        completion[:, len(policy.tokenizer(prompt)["input_ids"]) :] = True
        scores.append(policy(input_ids, real, completion, trie).sum())
    return torch.stack(scores).detach()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_probabilities_of_the_catalogue_sum_to_one_and_branches_equal_plain_sequences(seed):
    trie, policy = _catalogue(seed)
    prompts = _prompts(trie)
    input_ids, real = policy.tokenize(prompts)
    grouped = policy(input_ids, real, trie=trie, codes=trie.codes[None].expand(3, -1, -1)).sum(-1)
    torch.testing.assert_close(grouped.exp().sum(1), torch.ones(3), atol=1e-5, rtol=0)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(grouped[row], _every_score(policy, trie, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_beam_wider_than_the_catalogue_ranks_all_items_as_brute_force(seed):
    trie, policy = _catalogue(seed)
    prompts = _prompts(trie)
    ranking = rank_items(trie, beam_search(policy, trie, prompts, 200), 200)
    for row, prompt in enumerate(prompts):
        expected = _every_score(policy, trie, prompt)
        found = ranking.item_index[row][ranking.item_index[row] >= 0]
        assert sorted(found.tolist()) == list(range(trie.num_items))
        torch.testing.assert_close(ranking.score[row][: trie.num_items], expected[found], atol=1e-4, rtol=1e-4)
        assert (ranking.score[row].diff()[: trie.num_items - 1] <= 1e-6).all()


def _plain_beam_search(
    rows: list[tuple[int, ...]], steps: torch.Tensor, allowed: np.ndarray, width: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Search with lists and dictionaries: every level keeps the best of all continuations, ended SIDs among them.

    Args:
        rows: the SIDs.
        steps: log-probability of each code of each of them.
        allowed: which of them may come out.
    """
    beams = {(): np.float32(0)}
    for level in range(steps.shape[1]):
        longer = {}
        for prefix, score in beams.items():
            if len(prefix) < level:  # ended
                longer[prefix] = score
        for row, codes in enumerate(rows):
            if allowed[row] and codes[:level] in beams:
                grown = codes[: level + 1]
                longer[grown] = beams[codes[:level]] + (steps[row, level].numpy() if len(codes) > level else 0)
        beams = dict(sorted(longer.items(), key=lambda beam: -beam[1])[:width])
    return [(float(score), prefix) for prefix, score in beams.items()]


def _policy_of(catalogue, seed: int) -> tuple[SidPolicy, SidTrie, list[str]]:
    """Return a random policy over a drawn catalogue, and two prompts."""
    codes, sizes = catalogue
    policy = build_scratch_policy(PolicyConfig(hidden_dim=16, num_layers=1, num_heads=2), sizes, seed).eval()
    with torch.no_grad():
        policy.lm.get_input_embeddings().weight.mul_(20)
    trie = build_trie([f"i{index}" for index in range(len(codes))], codes, sizes)
    return policy, trie, [history_prompt(sid_texts(trie.codes[:count].numpy())) for count in (1, 3)]


@given(catalogues(), st.integers(0, 1_000), st.sampled_from([1, 2, 3, 5, 40]))
@settings(max_examples=20, deadline=None)
def test_any_beam_on_any_catalogue_and_filter_equals_a_plain_search_over_every_sid(catalogue, seed, width):
    codes, _ = catalogue
    rng = np.random.default_rng(seed)
    policy, trie, prompts = _policy_of(catalogue, seed)
    allowed = rng.random((2, len(codes))) < 0.5
    allowed[:, rng.integers(len(codes))] = True
    input_ids, real = policy.tokenize(prompts)
    with torch.no_grad():
        steps = policy(input_ids, real, trie=trie, codes=trie.codes.long()[None].expand(2, -1, -1))
    rows = [tuple(code for code in row if code >= 0) for row in trie.codes.tolist()]
    packed = allow_and_deny([np.flatnonzero(row) for row in allowed], [np.zeros(0, int)] * 2, len(codes))
    for some, mask in ((None, np.ones_like(allowed)), (torch.from_numpy(allowed), allowed), (packed, allowed)):
        found = beam_search(policy, trie, prompts, width, some)
        for row in range(2):
            expected = _plain_beam_search(rows, steps[row], mask[row], width)
            count = int((found.node[row] >= 0).sum())
            assert count == len(expected)
            np.testing.assert_allclose(found.score[row, :count], [score for score, _ in expected], atol=1e-4)
            sids = [tuple(code for code in codes if code >= 0) for codes in trie.sids(found.node[row, :count]).tolist()]
            assert len(set(sids)) == count
            chances = {sid: float(steps[row, index].sum()) for index, sid in enumerate(rows) if mask[row, index]}
            np.testing.assert_allclose([chances[sid] for sid in sids], found.score[row, :count], atol=1e-4)


@given(catalogues(), st.integers(0, 1_000), st.sampled_from([1, 2, 3, 5, 40]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_list_is_proven_only_where_it_is_that_of_brute_force_and_a_wider_search_ends_there(catalogue, seed, width, filtered):
    codes, _ = catalogue
    rng = np.random.default_rng(seed)
    policy, trie, prompts = _policy_of(catalogue, seed)
    allowed = rng.random((2, len(codes))) < (0.5 if filtered else 1.0)
    allowed[:, rng.integers(len(codes))] = True
    input_ids, real = policy.tokenize(prompts)
    with torch.no_grad():
        scores = policy(input_ids, real, trie=trie, codes=trie.codes.long()[None].expand(2, -1, -1)).sum(-1).numpy()
    some, k = torch.from_numpy(allowed) if filtered else None, min(3, width)
    beams = beam_search(policy, trie, prompts, width, some)
    lists = [recommend(policy, trie, prompts, k, width, allowed=some, widest=widest) for widest in (0, 1 << 20)]
    for row in range(2):
        known = set(trie.item_start[beams.node[row][beams.node[row] >= 0]].tolist())
        others = [score for item, score in enumerate(scores[row]) if allowed[row, item] and item not in known]
        assert max(others, default=-np.inf) <= float(beams.dropped[row]) + 1e-4
        best = np.sort(np.where(allowed[row], scores[row], -np.inf))[::-1][: min(k, int(allowed[row].sum()))]
        for found in (one[row] for one in lists):
            if found.is_proven(k):
                np.testing.assert_allclose(found.scores, best, atol=1e-4)
        assert lists[1][row].is_proven(k)
        assert width < len(codes) or lists[0][row].is_proven(k)


def test_a_narrow_beam_that_misses_the_best_item_is_not_proven_and_a_budget_ends_the_search():
    """The first code of items 1 to 9 is less probable than that of item 0, each of whose items is improbable."""
    codes = np.array([[0, code] for code in range(8)] + [[1, 0]])
    trie = build_trie([f"i{index}" for index in range(9)], codes, (2, 8))
    policy = build_scratch_policy(PolicyConfig(hidden_dim=16, num_layers=1, num_heads=2), (2, 8), 0).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()  # both first codes have 1/2, each item below 0 has 1/16, item 8 has 1/2
    prompt = [history_prompt(sid_texts(trie.codes[:1].numpy()))]
    (narrow,) = recommend(policy, trie, prompt, 1, 1)
    assert (narrow.item_ids, narrow.is_proven(1)) == (["i0"], False)
    (bounded,) = recommend(policy, trie, prompt, 1, 1, widest=1)
    assert (bounded.item_ids, bounded.is_proven(1)) == (["i0"], False)
    (exact,) = recommend(policy, trie, prompt, 1, 1, widest=2)
    assert (exact.item_ids, exact.is_proven(1)) == (["i8"], True)


def test_equal_scores_come_in_the_order_of_codes_alone_and_in_a_batch():
    codes = np.array([[a, b, -1] for a in range(3) for b in range(3)])
    codes = np.concatenate([codes[codes[:, 1] < 2], [[a, 2, c] for a in range(3) for c in range(2)]])
    trie = build_trie([f"i{index}" for index in range(len(codes))], codes, (3, 3, 2))
    policy = build_scratch_policy(PolicyConfig(hidden_dim=16, num_layers=1, num_heads=2), (3, 3, 2), 0).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    prompts = [history_prompt(sid_texts(trie.codes[:count].numpy())) for count in (1, 2, 4)]
    for width, expected in ((12, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]), (4, [0, 1, 4, 2]), (2, [0, 1])):
        together = rank_items(trie, beam_search(policy, trie, prompts, width), width).item_index
        assert together.tolist() == [expected] * 3
        assert rank_items(trie, beam_search(policy, trie, prompts[1:2], width), width).item_index.tolist() == [expected]


def test_a_request_gets_the_same_list_alone_as_in_a_batch():
    trie, policy = _catalogue(3)
    prompts = _prompts(trie)
    together = recommend(policy, trie, prompts, 8, 8)
    for prompt, expected in zip(prompts, together, strict=True):
        alone = recommend(policy, trie, [prompt], 8, 8)[0]
        assert alone.item_ids == expected.item_ids
        np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-4)


def test_a_request_gets_the_same_list_alone_as_in_a_batch_too_large_for_compiled_attention():
    trie, policy = _catalogue(3)
    prompts = _prompts(trie) * 300
    with torch.inference_mode():
        context, first = encode(policy, prompts), torch.zeros(900, 5, dtype=torch.long)
        context.steps.branch(first, first, context.length)
    assert isinstance(context.steps.branches, BranchBias)
    together = recommend(policy, trie, prompts, 30, 30)
    for place in range(3):
        alone = recommend(policy, trie, [prompts[place]], 30, 30)[0]
        for found in together[place::3]:
            assert found.item_ids == alone.item_ids
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("num_allowed", [1, 2, 7])
def test_a_filter_is_never_short_never_wrong_and_keeps_the_scores(num_allowed):
    trie, policy = _catalogue(4)
    prompts = _prompts(trie)[:2]
    generator = torch.Generator().manual_seed(num_allowed)
    allowed = torch.zeros(2, trie.num_items, dtype=torch.bool)
    for row in range(2):
        allowed[row, torch.randperm(trie.num_items, generator=generator)[:num_allowed]] = True
    for row, found in enumerate(recommend(policy, trie, prompts, 5, 5, allowed=allowed)):
        index = [trie.item_ids.to_pylist().index(item) for item in found.item_ids]
        assert len(set(index)) == len(index) == min(5, num_allowed)
        assert allowed[row, index].all()
        everything = _every_score(policy, trie, prompts[row])
        np.testing.assert_allclose(found.scores, everything[index], atol=1e-4)


def test_a_filter_that_leaves_nothing_is_an_error():
    trie, policy = _catalogue(5)
    with pytest.raises(ValueError, match="the filter of request 1 leaves no item"):
        allowed = torch.zeros(2, trie.num_items, dtype=torch.bool)
        allowed[0] = True
        beam_search(policy, trie, _prompts(trie)[:2], 5, allowed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts; pass at least one"),
        ({"k": 9}, r"beam_width \(8\) must be at least k \(9\)"),
        ({"allowed": torch.ones(2, 3, dtype=torch.bool)}, r"expected allowed of shape \(3, \d+\), found \(2, 3\)"),
        ({"allowed": allow_and_deny([None], [np.zeros(0, int)], 9)}, r"expected allowed of shape \(3, \d+\), found \(1, 9\)"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(arguments, message):
    trie, policy = _catalogue(5)
    with pytest.raises(ValueError, match=message):
        recommend(policy, trie, **{"prompts": _prompts(trie), "k": 8, "beam_width": 8} | arguments)


def test_a_catalogue_of_one_item_needs_no_model():
    policy = build_scratch_policy(PolicyConfig(hidden_dim=16, num_layers=1, num_heads=2), (2, 2), 0).eval()
    trie = build_trie(["only"], np.array([[1, 0]]), (2, 2))
    found = recommend(policy, trie, [history_prompt(sid_texts(np.array([[1, 0]])))], 3, 5)[0]
    assert (found.item_ids, found.scores) == (["only"], [0.0])


def test_items_that_share_a_sid_share_its_probability():
    policy = build_scratch_policy(PolicyConfig(hidden_dim=32, num_layers=1, num_heads=2), (2, 2), 0).eval()
    trie = build_trie(["a", "b", "c"], np.array([[0, 0], [0, 0], [1, 1]]), (2, 2))
    prompt = history_prompt(sid_texts(np.array([[0, 0]])))
    found = recommend(policy, trie, [prompt], 3, 3)[0]
    assert sorted(found.item_ids) == ["a", "b", "c"]
    assert np.exp(found.scores).sum() == pytest.approx(1, abs=1e-5)
    scores = dict(zip(found.item_ids, found.scores, strict=True))
    assert scores["a"] == scores["b"]


def test_a_saved_policy_gives_the_same_list(tmp_path):
    trie, policy = _catalogue(6)
    policy.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    expected = recommend(policy, trie, _prompts(trie), 10, 10)
    assert [one.item_ids for one in recommend(load_policy(tmp_path), trie, _prompts(trie), 10, 10)] == [
        one.item_ids for one in expected
    ]


def test_samples_follow_the_policy():
    trie, policy = _catalogue(7)
    prompt = _prompts(trie)[0]
    drawn = rollout(policy, trie, [prompt], 2_000, "sample", generator=torch.Generator().manual_seed(0)).item_index[0]
    frequency = torch.bincount(drawn, minlength=trie.num_items) / len(drawn)
    torch.testing.assert_close(frequency, _every_score(policy, trie, prompt).exp(), atol=0.04, rtol=0)


def test_distinct_samples_follow_the_policy_one_after_the_other_without_repeats():
    trie, policy = _catalogue(7)
    prompt, draws = _prompts(trie)[0], 2_000
    generator = torch.Generator().manual_seed(0)
    drawn = rollout(policy, trie, [prompt] * draws, 6, "distinct", generator=generator).item_index
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    chance = _every_score(policy, trie, prompt).exp()
    first = torch.bincount(drawn[:, 0], minlength=trie.num_items) / draws
    torch.testing.assert_close(first, chance, atol=0.04, rtol=0)
    # P(b second) = sum over a != b of P(a) P(b) / (1 - P(a))
    odds = chance / (1 - chance)
    second = torch.bincount(drawn[:, 1], minlength=trie.num_items) / draws
    torch.testing.assert_close(second, chance * (odds.sum() - odds), atol=0.04, rtol=0)


def test_a_group_larger_than_the_catalogue_is_an_error_for_the_beam():
    trie, policy = _catalogue(8)
    with pytest.raises(ValueError, match="500 different roll-outs need as many SIDs"):
        rollout(policy, trie, _prompts(trie)[:1], 500, "beam", generator=torch.Generator())


@pytest.mark.parametrize("suffixed", [False, True])
def test_ten_of_forty_items_below_one_prefix_are_ten_items(suffixed):
    codes = np.array([[2, 3, 1, item] if suffixed else [2, 3, item, -1] for item in range(40)])
    sizes = (4, 4, 2 if suffixed else 40, 40)
    trie = build_trie([f"i{item:02d}" for item in range(40)], codes, sizes)
    policy = build_scratch_policy(PolicyConfig(hidden_dim=16, num_layers=1, num_heads=2), sizes, 0).eval()
    prompt = history_prompt(sid_texts(codes[[5, 7]]))
    best = _every_score(policy, trie, prompt).argsort(descending=True)[:10].tolist()
    for width in (10, 40):
        (found,) = recommend(policy, trie, [prompt], 10, width)
        assert found.item_ids == [trie.item_ids[place].as_py() for place in best] and len(set(found.item_ids)) == 10
