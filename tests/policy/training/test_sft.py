"""SFT learns a planted rule, wastes little on padding, and resumes to the bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.config.policy import PolicyConfig, SftConfig
from digr.policy.model import build_scratch_policy, load_policy
from digr.policy.training.batches import Texts, TokenSequences, draw_by_rate, make_batch, pack_sequences, plan_batches
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding, ValidExamples, validate
from tests.policy.toy import LEVEL_SIZES, toy_policy, toy_sequences, toy_trie, toy_valid

CONFIG = SftConfig(epochs=12, lr=1e-2, batch_tokens=256, eval_every_epochs=4, patience=9)


class Interrupted(Exception):
    """Stands for a kill."""


def _train(folder, config=CONFIG, policy=None, resume=None, stop_at=None, reports=None, optimizer=make_optimizer):
    """Train; `stop_at` is what the last checkpoint says of itself before the kill, for example {"epoch": 4}."""
    torch.manual_seed(3)
    policy, trie = policy or toy_policy(dropout=0.1), toy_trie()
    engine = PlainEngine(policy, optimizer(policy, config.lr, config.weight_decay), max_grad_norm=config.max_grad_norm)

    def save(record, write):
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        (folder / "checkpoint").mkdir(parents=True)
        write(folder / "checkpoint")
        if stop_at and stop_at.items() <= record.items():
            raise Interrupted

    progress = train_sft(
        engine,
        trie,
        toy_sequences(policy, trie),
        toy_valid(trie),
        config,
        decoding=Decoding(20, 16),
        seed=1,
        best_folder=folder / "best",
        resume=resume,
        save=save,
        report=(reports if reports is not None else []).append,
    )
    return progress, policy


def test_sft_learns_the_planted_successor_of_every_item(tmp_path):
    reports = []
    progress, _ = _train(tmp_path, CONFIG.model_copy(update={"batch_tokens": 96}), policy=toy_policy(), reports=reports)
    losses = [record["loss"] for record in progress.records]
    assert losses[-1] < 0.5 * losses[0]
    assert progress.best > 0.9 and progress.done
    assert [record["epoch"] for record in progress.records if "ndcg@10" in record] == [4, 8, 12]
    assert [record["epoch"] for record in reports] == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    best = load_policy(tmp_path / "best")
    engine = PlainEngine(best, make_optimizer(best, 1.0, 0.0), max_grad_norm=1.0)
    assert validate(engine, toy_trie(), toy_valid(toy_trie()), Decoding(20, 16))["ndcg@10"] == pytest.approx(progress.best)


@pytest.mark.parametrize(
    "stop_at",
    [{"epoch": 4, "step": 16}, {"step": 5}, {"step": 25}],
    ids=["after validation", "mid-epoch before any validation", "mid-epoch"],
)
def test_a_killed_training_goes_on_to_the_same_weights_bit_for_bit(tmp_path, stop_at):
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 5, "epochs": 8})
    whole, expected = _train(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        _train(tmp_path / "cut", config, stop_at=stop_at)
    shutil.move(tmp_path / "cut" / "checkpoint", tmp_path / "left")
    shutil.rmtree(tmp_path / "cut")
    resumed, found = _train(tmp_path / "cut", config, policy=toy_policy(dropout=0.1, seed=9), resume=tmp_path / "left")
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name
    told = [(record["epoch"], record["step"], record["loss"]) for record in whole.records]
    assert [(record["epoch"], record["step"], record["loss"]) for record in resumed.records] == told
    assert [step for _, step, _ in told][:3] == [4, 5, 8], "one line per epoch and per checkpoint"
    assert (tmp_path / "cut" / "best" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "best" / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_of_more_workers_goes_on_at_its_step(tmp_path):
    with pytest.raises(Interrupted):
        _train(tmp_path, CONFIG.model_copy(update={"checkpoint_every_steps": 5}), stop_at={"step": 5})
    written = tmp_path / "checkpoint" / "progress.json"
    state = json.loads(written.read_text())
    assert state["epoch_step"] == 1 and state["num_workers"] == 1
    written.write_text(json.dumps(state | {"num_workers": 2}))
    shutil.move(tmp_path / "checkpoint", tmp_path / "left")
    progress, _ = _train(tmp_path, resume=tmp_path / "left")
    assert progress.done and [record["epoch"] for record in progress.records] == [1, 1.25, *range(2, 13)]
    assert [record["step"] for record in progress.records][:3] == [4, 5, 8]


def test_a_step_in_several_batches_moves_the_weights_as_one_large_batch(tmp_path):
    def sgd(policy, lr, weight_decay):
        return torch.optim.SGD(policy.parameters(), lr=lr)

    lengths = toy_sequences(toy_policy(), toy_trie()).lengths
    num = len(plan_batches(lengths, 96, np.random.default_rng([1, 0, 0])))
    assert num > 5
    weights = []
    for change in ({"batch_tokens": 100_000}, {"batch_tokens": 96 * num, "accumulate": num}):
        policy = toy_policy()
        with pytest.raises(Interrupted):
            config = CONFIG.model_copy(update={"epochs": 2, "eval_every_epochs": 1, "lr": 1.0} | change)
            _train(tmp_path, config, policy=policy, optimizer=sgd, stop_at={"epoch": 1, "step": 1})
        weights.append(torch.cat([value.flatten() for value in policy.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(weights[0], torch.cat([value.flatten() for value in toy_policy().parameters()]), atol=1e-4)


def test_a_checkpoint_of_another_policy_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        _train(tmp_path, stop_at={"epoch": 4})
    smaller = PolicyConfig(hidden_dim=16, num_layers=2, num_heads=2, max_tokens=64)
    with pytest.raises(ValueError, match=r"a checkpoint of another policy .*remove the folder to start again"):
        _train(tmp_path, policy=build_scratch_policy(smaller, LEVEL_SIZES, 0), resume=tmp_path / "checkpoint")


def test_a_rate_says_how_often_a_sequence_is_seen():
    rates, rng = np.array([1.0, 0.25, 2.5, 0.0, 0.25, 0.25]), np.random.default_rng(0)
    counts = np.stack([np.bincount(draw_by_rate(rates, rng), minlength=6) for _ in range(2000)])
    np.testing.assert_allclose(counts.mean(0), rates, atol=0.05)
    assert (counts[:, 0] == 1).all() and (counts[:, 3] == 0).all() and set(counts[:, 2]) == {2, 3}
    assert set(counts.sum(1)) == {4, 5}, "4.25 on average"
    assert draw_by_rate(np.ones(3), rng).tolist() == [0, 1, 2]


def test_a_finished_training_is_not_trained_again(tmp_path):
    done, _ = _train(tmp_path / "one", CONFIG.model_copy(update={"epochs": 4}))
    again, _ = _train(tmp_path / "two", resume=tmp_path / "one" / "checkpoint")
    assert again == done


def test_training_stops_when_validation_no_longer_improves(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 50, "eval_every_epochs": 1, "patience": 2, "lr": 1e-9})
    progress, _ = _train(tmp_path, config, policy=toy_policy())
    assert progress.position == 3 and progress.best_position == 1


@settings(deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=200), st.integers(60, 400))
def test_batches_hold_every_sequence_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths)
    batches = plan_batches(lengths, budget, np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(lengths[batch].max() * len(batch) <= budget for batch in batches)


def test_a_sequence_beyond_the_budget_gets_its_own_batch():
    assert sorted(map(len, plan_batches(np.array([100, 3, 3]), 10, np.random.default_rng(0)))) == [1, 2]


def test_padding_is_a_small_part_of_the_batches():
    lengths = np.random.default_rng(0).integers(4, 45, 4000)
    batches = plan_batches(lengths, 2048, np.random.default_rng(0))
    computed = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert 1 - lengths.sum() / computed < 0.06
    assert computed / len(batches) > 0.85 * 2048


def test_a_batch_marks_completions_and_pads_on_the_right():
    sequences = TokenSequences(np.array([5, 6, 7, 8, 9], np.int32), np.array([0, 2, 5]), np.array([1, 2]), np.ones(2))
    batch = make_batch(sequences, np.array([1, 0]), pad_id=0)
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 6, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.completion_mask.tolist() == [[False, False, True], [False, True, False]]


def test_sequences_start_with_the_special_tokens_of_the_prompt_only():
    policy = toy_policy()
    packed = pack_sequences(policy.tokenizer, [Texts(["<a_1>"], ["<b_0><c_1>"]), Texts(["<a_0><b_0>"], ["<a_2>"], [0.5])], 8)
    tokens = [policy.tokenizer.convert_ids_to_tokens(packed.tokens[a:b].tolist()) for a, b in ((0, 4), (4, 8))]
    assert tokens == [["<bos>", "<a_1>", "<b_0>", "<c_1>"], ["<bos>", "<a_0>", "<b_0>", "<a_2>"]]
    assert packed.prompt_lengths.tolist() == [2, 3]
    assert packed.rates.tolist() == [1.0, 0.5]


def test_a_sequence_that_does_not_fit_says_what_to_change():
    with pytest.raises(
        ValueError, match=r"policy.max_tokens: a prompt has 2 tokens with its newest item alone, .* leaves room for 0"
    ):
        pack_sequences(toy_policy().tokenizer, [Texts(["<a_1>"], ["<b_0><c_1>"])], 3)
    with pytest.raises(ValueError, match="no training sequences; histories needs rows of split train"):
        pack_sequences(toy_policy().tokenizer, [], 3)


def test_validation_without_examples_is_an_error():
    policy = toy_policy()
    engine = PlainEngine(policy, make_optimizer(policy, 1.0, 0.0), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="no validation examples; histories needs rows of split valid"):
        validate(engine, toy_trie(), ValidExamples([], torch.zeros(0, dtype=torch.long)), Decoding(20, 16))
