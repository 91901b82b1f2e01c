"""Every reward term against literals and a brute-force reference."""

import math

import pytest
import torch

from digr.config.policy import RewardConfig
from digr.rewards.interest_reward import PRESETS, TERMS, reward_terms, reward_weights, total_reward

# items: 0 = (1,1,1), 1 = (1,1,2), 2 = (1,3,0), 3 = (1,1,1) with suffix 1
CODES = torch.tensor([[1, 1, 1, 0], [1, 1, 2, -1], [1, 3, 0, -1], [1, 1, 1, 1]])
QUALITY = torch.tensor([0.5, 1.0, 0.25, 0.0])
VECTORS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.0, 0.0]])


def _terms(rollouts: list[list[int]], targets: list[int], **options):
    index, target = torch.tensor(rollouts), torch.tensor(targets)
    codes = torch.where(index[..., None] >= 0, CODES[index.clamp(min=0)], -1)
    return reward_terms(codes, CODES[target], index, target, QUALITY, interest_embeddings=VECTORS, num_levels=3, **options)


def test_each_term_of_one_group_is_what_its_definition_says():
    terms = _terms([[1, 0, 2, 3, -1]], [0], canonical_cosine=torch.tensor([[0.25, 1.0, 0.5, 0.75, 0.5]]))
    total = sum(1 / math.log2(rank + 1) for rank in range(1, 6))
    rank = [-1 / math.log2(place + 1) / total for place in range(1, 6)]
    rank[1] = 0.0
    expected = {
        "exact": [0, 1, 0, 0, 0],
        "rank": rank,
        "valid": [1, 1, 1, 1, 0],
        "prefix": [2 / 3, 1, 1 / 3, 1, 0],
        "quality": [0, 0.5, 0, 0, 0],
        "interest": [0.6 * 1.0, 1.0 * 0.5, 0.0, 0.0, 0.0],
        "canonical": [0.25 * 1.0, 1.0 * 0.5, 0.5 * 0.25, 0.0, 0.0],
    }
    assert tuple(terms) == TERMS
    for name, values in expected.items():
        assert terms[name][0].tolist() == pytest.approx(values), name


def test_a_group_without_a_hit_has_no_rank_signal():
    assert _terms([[1, 2]], [0])["rank"].tolist() == [[0.0, 0.0]]


def test_sampled_rollouts_are_ranked_by_their_log_probability():
    beam = _terms([[1, 0, 2]], [0])["rank"][0]
    shuffled = _terms([[2, 1, 0]], [0], scores=torch.tensor([[-9.0, -1.0, -2.0]]))["rank"][0]
    assert shuffled.tolist() == pytest.approx(beam[[2, 0, 1]].tolist())


def test_without_interest_vectors_the_term_is_zero():
    index = torch.tensor([[0, 1]])
    terms = reward_terms(CODES[index], CODES[[0]], index, torch.tensor([0]), QUALITY)
    assert terms["interest"].tolist() == terms["canonical"].tolist() == [[0.0, 0.0]]


def test_terms_equal_a_brute_force_loop_on_random_groups():
    generator = torch.Generator().manual_seed(0)
    num_items, batch, group, levels = 12, 7, 5, 4
    codes = torch.randint(0, 3, (num_items, levels), generator=generator)
    codes[::2, -1] = -1
    quality = torch.rand(num_items, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, 6, generator=generator), dim=-1)
    index = torch.randint(-1, num_items, (batch, group), generator=generator)
    target = torch.randint(0, num_items, (batch,), generator=generator)
    rolled = torch.where(index[..., None] >= 0, codes[index.clamp(min=0)], -1)
    cosines = torch.rand(batch, group, generator=generator)
    given = {"interest_embeddings": vectors, "canonical_cosine": cosines, "num_levels": 3}
    terms = reward_terms(rolled, codes[target], index, target, quality, **given)
    for b in range(batch):
        for g in range(group):
            item, wanted = int(index[b, g]), int(target[b])
            length = 0
            while item >= 0 and length < 3 and codes[item, length] == codes[wanted, length]:
                length += 1
            cosine = float(vectors[item] @ vectors[wanted]) if item >= 0 else 0.0
            assert terms["prefix"][b, g].item() == pytest.approx(length / 3)
            assert terms["interest"][b, g].item() == pytest.approx(max(cosine, 0) * float(quality[item]), abs=1e-6)
            shared = float(cosines[b, g] * quality[item]) if item >= 0 else 0.0
            assert terms["canonical"][b, g].item() == pytest.approx(shared)
            assert terms["quality"][b, g].item() == pytest.approx(float(quality[wanted]) if item == wanted else 0.0)


def test_no_preset_weighs_what_only_some_runs_have():
    assert all(
        reward_weights(RewardConfig(preset=preset))[term] == 0 for preset in PRESETS for term in ("user_interest", "canonical")
    )


def test_the_successor_preset_is_its_published_sum():
    terms = _terms([[0, 1]], [0])
    total = total_reward(terms, reward_weights(RewardConfig(preset="successor", valid=0.2, prefix=0.3)))
    assert total[0].tolist() == pytest.approx([1 + 0.2 + 0.3 + 0.5 * 0.5, 0.2 + 0.3 * 2 / 3])


def test_minionerec_groups_with_a_hit_sum_to_the_hit_minus_the_weight_of_all_other_ranks():
    total = total_reward(_terms([[0, 1, 2]], [0]), reward_weights(RewardConfig(preset="minionerec")))
    first = 1 / (1 + 1 / math.log2(3) + 1 / 2)
    assert total.sum().item() == pytest.approx(1 - (1 - first))


def test_no_near_miss_earns_as_much_as_a_hit_under_our_preset():
    assert PRESETS["digr"]["interest"] < PRESETS["digr"]["exact"]
    terms = _terms([[3, 1]], [3])
    total = total_reward(terms, reward_weights(RewardConfig()))
    assert total[0, 0] == 1.0
    assert total[0].argmax() == 0


def test_a_given_weight_replaces_the_presets_even_when_it_is_zero():
    weights = reward_weights(RewardConfig(preset="minionerec", rank=0.0, interest=0.1))
    assert weights == dict.fromkeys(TERMS, 0.0) | {"exact": 1.0, "interest": 0.1}
