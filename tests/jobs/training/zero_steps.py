"""Steps of a small scratch policy on given batches, by one plain process and by DeepSpeed workers, and on from checkpoints."""

from pathlib import Path

import numpy as np
import torch

from digr.config.policy import PolicyConfig, TrainConfig
from digr.policy.model import build_policy
from digr.policy.training.engine import Engine, PlainEngine, make_optimizer, policy_of
from digr.sids.trie import build_trie

CASES = {
    "zero-2": TrainConfig(zero_stage=2),
    "zero-3 with all offloaded": TrainConfig(zero_stage=3, offload="all"),
    "zero-2 in bf16": TrainConfig(zero_stage=2, precision="bf16"),
}
STEPS, CUT = 50, 30
NUM_ITEMS, LEVEL_SIZES = 40, (4, 4, 4)
CODES = np.array([[item % 4, item // 4 % 4, item // 16] for item in range(NUM_ITEMS)])
TRIE = build_trie([f"i{item:02d}" for item in range(NUM_ITEMS)], CODES, LEVEL_SIZES)


def make_engine(train: TrainConfig | None) -> Engine:
    """Return an engine of DeepSpeed's for a worker, or with None a plain one, each with the same weights."""
    policy = build_policy(PolicyConfig(hidden_dim=32, num_layers=1, num_heads=2, max_tokens=64, dropout=0.0), LEVEL_SIZES, 0)
    optimizer = make_optimizer(policy, 1e-2, 0.05)
    if train is None:
        return PlainEngine(policy, optimizer, max_grad_norm=1.0)
    from jobs.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(train, policy, optimizer, max_grad_norm=1.0)


def take_steps(engine: Engine, steps: range) -> list[float]:
    """Step on given batches, each worker on its rows and those in two parts; returns the mean losses over all workers."""
    policy, losses = policy_of(engine), []
    for step in steps:
        starts = torch.randint(0, NUM_ITEMS, (16, 1), generator=torch.Generator().manual_seed(step))
        codes = TRIE.codes.long()[(starts + torch.arange(4)) % NUM_ITEMS]
        tokens = torch.stack([policy.token_ids(level)[codes[..., level]] for level in range(3)], -1).flatten(1)
        total = 0.0
        for part in tokens[engine.rank :: engine.world_size].chunk(2):
            completion = torch.ones_like(part, dtype=torch.bool)
            completion[:, :3] = False
            loss = -engine(part, torch.ones_like(completion), completion, TRIE).sum() / (16 * 9) * engine.world_size
            engine.backward(loss)
            total += engine.total(loss.detach()[None].double()).item() / engine.world_size
        losses.append(total)
        engine.step(3e-3)
    return losses


def take_steps_of_cases(folder: Path) -> dict[str, list[float]]:
    """Train each case, write a checkpoint on the way, and go on from it and from the one in `folder/plain` in new engines."""
    losses = {}
    for name, train in CASES.items():
        engine, own = make_engine(train), folder / f"steps of {name}"
        first = take_steps(engine, range(CUT))
        own.mkdir(exist_ok=True)
        engine.save(own)
        losses[name] = first + take_steps(engine, range(CUT, STEPS))
        for source, path in ((name, own), ("plain", folder / "plain")):
            again = make_engine(train)
            again.load(path)
            losses[f"{name}, resumed from {source}"] = first + take_steps(again, range(CUT, STEPS))
    return losses
