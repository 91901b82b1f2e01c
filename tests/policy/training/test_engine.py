"""The plain engine clips, resumes and follows the schedule."""

import math

import pytest
import torch
from torch import nn

from digr.config import build_config
from digr.policy.training.engine import PlainEngine, learning_rate, make_optimizer
from tests.policy.toy import toy_policy


def _engine(module: nn.Module, max_grad_norm: float = 1.0) -> PlainEngine:
    return PlainEngine(module, make_optimizer(module, 0.1, 0.01), max_grad_norm=max_grad_norm)


def test_the_learning_rate_rises_over_the_warm_up_and_ends_at_zero():
    rates = [learning_rate(step / 10, 2.0, 0.2) for step in range(1, 11)]
    assert rates[:2] == [1.0, 2.0]
    assert rates[5] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[-1] == pytest.approx(0)
    assert learning_rate(0.01, 2.0, 0.0) == pytest.approx(2.0, rel=1e-3)


def test_biases_and_norms_are_not_decayed():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    groups = make_optimizer(module, 0.1, 0.5).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.5), (3, 0.0)]


def test_a_step_uses_the_clipped_gradient_and_clears_it():
    module = nn.Linear(2, 1, bias=False)
    nn.init.ones_(module.weight)
    engine = PlainEngine(module, torch.optim.SGD(module.parameters(), lr=1.0), max_grad_norm=1.0)
    engine.backward(engine(torch.tensor([[30.0, 40.0]])).sum())
    engine.step(0.5)
    torch.testing.assert_close(module.weight.data, torch.tensor([[1 - 0.3, 1 - 0.4]]))
    assert module.weight.grad is None


def test_a_loaded_engine_goes_on_as_the_saved_one(tmp_path):
    torch.manual_seed(0)
    first, second, inputs = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(8, 4)
    one, two = _engine(first), _engine(second)

    def train(engine: PlainEngine) -> None:
        engine.backward(engine(inputs).square().mean())
        engine.step(0.1)

    train(one)
    one.save(tmp_path)
    two.load(tmp_path)
    train(one)
    train(two)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_bf16_runs_the_module_in_bf16_and_keeps_fp32_weights():
    module = nn.Linear(4, 4)
    engine = PlainEngine(module, make_optimizer(module, 0.1, 0.0), max_grad_norm=1.0, precision="bf16")
    assert engine(torch.ones(1, 4)).dtype == torch.bfloat16
    assert module.weight.dtype == torch.float32


def test_a_policy_that_generates_is_in_evaluation_mode_and_trains_on_as_it_was():
    policy, reference = toy_policy(dropout=0.1).train(), toy_policy(seed=1).train()
    engine = PlainEngine(policy, make_optimizer(policy, 0.1, 0.0), max_grad_norm=1.0, reference=reference)
    with engine.generation_model() as model:
        assert model is policy and not model.training and not model.lm.transformer.h[0].attn.training
    assert policy.training and policy.lm.transformer.h[0].attn.training
    with engine.reference_model() as model:
        assert model is reference and not model.training and not any(value.requires_grad for value in model.parameters())


def test_train_settings_that_do_not_fit_each_other_say_what_to_change():
    for settings, message in (
        ({"engine": "plain", "num_workers": 2}, r'engine = "plain" runs one worker, found num_workers = 2'),
        ({"offload": "all", "zero_stage": 2}, r'offload = "all" needs zero_stage of 3 or more, found 2'),
        ({"offload": "optimizer", "zero_stage": 0}, r'offload = "optimizer" needs zero_stage of 1 or more, found 0'),
        ({"precision": "bf16", "zero_stage": 0}, r'precision = "bf16" needs zero_stage of 1 or more, found 0'),
    ):
        with pytest.raises(ValueError, match=message):
            build_config({"run": {"dir": "x"}, "train": settings}, where="test")
