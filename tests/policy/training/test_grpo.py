"""GRPO raises the reward, counts groups without signal, and never returns less than it was given."""

import json
import shutil

import numpy as np
import pytest
import torch

from digr.config.policy import GrpoConfig
from digr.policy.model import load_policy
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.grpo import Prompts, Rewards, kept_record, rows_of_step, train_grpo, train_step
from digr.policy.training.validation import Decoding, validate
from tests.policy.toy import strings, toy_policy, toy_prompts, toy_trie, toy_valid

CONFIG = GrpoConfig(
    steps=30, prompts_per_step=24, group_size=8, rollouts="sample", lr=3e-3, eval_every_steps=10, kl_coefficient=0.0
)


def exact_reward(rollouts, target_index, scores, user_ids):
    exact = (rollouts.item_index == target_index[:, None]).float()
    return Rewards(exact, {"exact": exact})


def _train(folder, config=CONFIG, reward_fn=exact_reward, resume=None, stop_at=None):
    policy, trie = toy_policy(), toy_trie()
    ids, prompts, targets = toy_prompts(trie)
    optimizer = make_optimizer(policy, config.lr, 0.0)
    engine = PlainEngine(policy, optimizer, max_grad_norm=config.max_grad_norm, reference=toy_policy())

    def save(record, write):
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        (folder / "checkpoint").mkdir(parents=True)
        write(folder / "checkpoint")
        if record["step"] == stop_at:
            raise InterruptedError

    progress = train_grpo(
        engine,
        trie,
        Prompts(strings(ids), strings(prompts), targets),
        toy_valid(trie),
        config,
        reward_fn=reward_fn,
        decoding=Decoding(20, 16),
        seed=0,
        best_folder=folder / "best",
        resume=resume,
        save=save,
        report=lambda record: None,
    )
    return progress, policy


def _weights(folder):
    return load_policy(folder).state_dict()


@pytest.mark.parametrize(
    ("loss", "rollouts"), [("grpo", "sample"), ("grpo", "beam"), ("dr_grpo", "sample"), ("dapo", "beam"), ("gspo", "sample")]
)
def test_every_loss_raises_the_mean_reward(tmp_path, loss, rollouts):
    def high_items(found, target_index, scores, user_ids):
        return Rewards(found.item_index / 24, {"high": found.item_index / 24})

    config = CONFIG.model_copy(update={"loss": loss, "rollouts": rollouts, "steps": 15})
    progress, _ = _train(tmp_path, config, high_items)
    rewards = [record["reward"] for record in progress.records if "reward" in record]
    assert np.mean(rewards[-5:]) > rewards[0] + 0.1


def test_grpo_with_an_exact_reward_improves_validation_and_keeps_its_best_weights(tmp_path):
    progress, _ = _train(tmp_path, CONFIG.model_copy(update={"steps": 30, "lr": 1e-2}))
    scores = {record["step"]: record["ndcg@10"] for record in progress.records if "ndcg@10" in record}
    assert progress.best == max(scores.values()) > scores[0]
    best = load_policy(tmp_path / "best")
    engine = PlainEngine(best, make_optimizer(best, 1.0, 0.0), max_grad_norm=1.0)
    assert validate(engine, toy_trie(), toy_valid(toy_trie()), Decoding(20, 16))["ndcg@10"] == pytest.approx(progress.best)


def test_a_reward_that_ruins_the_policy_returns_the_sft_weights(tmp_path):
    def wrong(rollouts, target_index, scores, user_ids):
        total = -(rollouts.item_index == target_index[:, None]).float() - rollouts.item_index
        return Rewards(total, {"wrong": total})

    progress, trained = _train(tmp_path, CONFIG.model_copy(update={"lr": 0.1}), wrong)
    scores = [record["ndcg@10"] for record in progress.records if "ndcg@10" in record]
    assert progress.best_position == 0 and progress.best == scores[0] >= max(scores)
    kept, start = _weights(tmp_path / "best"), toy_policy().state_dict()
    assert all(torch.equal(kept[name], start[name]) for name in start)
    assert not all(torch.equal(trained.state_dict()[name], start[name]) for name in start)


def test_keeping_by_reward_takes_the_highest_reward_that_ranks_no_worse_than_the_sft_policy(tmp_path):
    def near(rollouts, target_index, scores, user_ids):
        exact = (rollouts.item_index == target_index[:, None]).float()
        return Rewards(exact + rollouts.item_index / 24, {"exact": exact})

    config = CONFIG.model_copy(update={"keep": "reward", "lr": 1e-3, "eval_every_steps": 3, "steps": 60})
    progress, _ = _train(tmp_path, config, near)
    validated = [record for record in progress.records if "ndcg@10" in record]
    allowed = [record for record in validated if record["ndcg@10"] >= validated[0]["ndcg@10"]]
    assert 1 < len(allowed) < len(validated), "the reward leads away from the hits in the end"
    best = max(allowed, key=lambda record: record["valid_reward"])
    assert progress.best_position == best["step"] > 0
    assert best["valid_reward"] > validated[0]["valid_reward"]
    assert kept_record(progress) is best


def test_groups_of_equal_rewards_are_counted_and_change_nothing(tmp_path):
    def constant(rollouts, target_index, scores, user_ids):
        total = torch.ones(rollouts.item_index.shape)
        return Rewards(total, {"constant": total})

    progress, policy = _train(tmp_path, CONFIG.model_copy(update={"steps": 3, "kl_coefficient": 1.0}), constant)
    steps = [record for record in progress.records if "reward" in record]
    assert [record["dead_groups"] for record in steps] == [24, 24, 24]
    assert [record["dead_group_rate"] for record in steps] == [1, 1, 1]
    start = toy_policy().state_dict()
    assert all(torch.equal(policy.state_dict()[name], start[name]) for name in start)


def test_the_kl_guard_keeps_the_policy_near_the_reference(tmp_path):
    free, _ = _train(tmp_path / "free", CONFIG.model_copy(update={"lr": 1e-2}))
    held, _ = _train(tmp_path / "held", CONFIG.model_copy(update={"lr": 1e-2, "kl_coefficient": 10.0}))
    assert held.records[-1]["kl"] < 0.2 * free.records[-1]["kl"]


def test_several_updates_of_one_roll_out_leave_the_ratio_one(tmp_path):
    once, _ = _train(tmp_path / "once", CONFIG.model_copy(update={"steps": 5, "lr": 3e-2}))
    thrice, _ = _train(tmp_path / "thrice", CONFIG.model_copy(update={"steps": 5, "lr": 3e-2, "updates_per_rollout": 3}))
    assert all(record["clipped_rate"] == 0 for record in once.records[1:])
    assert any(record["clipped_rate"] > 0 for record in thrice.records[1:])


def test_a_step_in_several_parts_moves_the_weights_as_one_large_part():
    def late(rollouts, target_index, scores, user_ids):
        return Rewards(rollouts.item_index / 24, {"late": rollouts.item_index / 24})

    trie, weights = toy_trie(), []
    ids, prompts, targets = toy_prompts(trie)
    for accumulate in (1, 5, 99):
        policy = toy_policy()
        engine = PlainEngine(policy, torch.optim.SGD(policy.parameters(), 1.0), max_grad_norm=1.0, reference=toy_policy())
        change = {"rollouts": "beam", "accumulate": accumulate, "updates_per_rollout": 2, "lr": 1.0, "kl_coefficient": 0.1}
        given = Prompts(strings(ids), strings(prompts), targets)
        train_step(engine, trie, given, CONFIG.model_copy(update=change), reward_fn=late, step=0, seed=0)
        weights.append(torch.cat([value.flatten() for value in policy.parameters()]))
    for found in weights[1:]:
        torch.testing.assert_close(found, weights[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(weights[0], torch.cat([value.flatten() for value in toy_policy().parameters()]), atol=1e-3)


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path):
    whole, expected = _train(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        _train(tmp_path / "cut", stop_at=10)
    shutil.move(tmp_path / "cut" / "checkpoint", tmp_path / "left")
    resumed, found = _train(tmp_path / "cut", resume=tmp_path / "left")
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())
    rewards = [[record.get("reward") for record in progress.records] for progress in (whole, resumed)]
    assert rewards[0] == rewards[1]


def test_sampled_roll_outs_show_their_reward_terms(tmp_path):
    progress, _ = _train(tmp_path, CONFIG.model_copy(update={"steps": 10}))
    assert len(progress.samples) == 4
    sample = json.loads(json.dumps(progress.samples[0]))
    assert sample["step"] == 10 and sample["target"].startswith("i") and sample["example_id"].startswith("e")
    rewards = [entry["reward"] for entry in sample["rollouts"]]
    assert rewards == sorted(rewards, reverse=True) == [entry["terms"]["exact"] for entry in sample["rollouts"]]


def test_each_row_is_drawn_once_per_pass():
    drawn = np.concatenate([rows_of_step(10, 4, step, seed=0) for step in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert rows_of_step(3, 8, 0, seed=0).shape == (8,)
