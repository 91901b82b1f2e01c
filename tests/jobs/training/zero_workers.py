"""One training of a tiny Qwen3, fine-tuning and GRPO, for one plain process or for one of two DeepSpeed workers.

`python -m tests.jobs.training.zero_workers RANK FOLDER CASE...` is such a worker. Both see the same batches: the plain
process gets those of both workers in one. In the end the workers take the steps of `zero_steps.py`.
"""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from digr.config.policy import GrpoConfig, PolicyConfig, SftConfig, TrainConfig
from digr.policy.decoding.search import recommend
from digr.policy.model import SidPolicy, adapt, build_policy, checkpoint_activations, load_policy
from digr.policy.training.batches import Texts, TokenSequences, pack_sequences
from digr.policy.training.engine import Engine, PlainEngine, make_optimizer
from digr.policy.training.grpo import Prompts, Rewards, train_grpo
from digr.policy.training.rollouts import Rollouts
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding, Progress, ValidExamples
from tests.jobs.training.zero_steps import take_steps_of_cases
from tests.policy.toy import LEVEL_SIZES, NUM_ITEMS, strings, toy_prompts, toy_trie

NUM_WORKERS = 2
# DeepSpeed leaves parameters of up to 100,000 numbers in one piece; here all matrices are larger
SIZES = {"hidden_size": 320, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 80}
CASES: dict[str, dict[str, Any]] = {
    f"{head} zero-{stage}": {"head": head, "zero_stage": stage} for head in ("tied", "untied") for stage in (1, 2, 3)
} | {
    "tied zero-3 with lora": {"head": "tied", "zero_stage": 3, "lora_rank": 4},
    "untied zero-3 with lora": {"head": "untied", "zero_stage": 3, "lora_rank": 4},
    "tied zero-3 with all offloaded": {"head": "tied", "zero_stage": 3, "offload": "all"},
    "untied zero-3 with checkpoints": {"head": "untied", "zero_stage": 3, "gradient_checkpointing": True},
    "untied zero-3 in bf16": {"head": "untied", "zero_stage": 3, "precision": "bf16"},
}
SFT = SftConfig(epochs=6, lr=3e-3, batch_tokens=10**6, eval_every_epochs=2)
GRPO = GrpoConfig(steps=3, prompts_per_step=NUM_ITEMS, group_size=4, lr=1e-3, eval_every_steps=3, kl_coefficient=0.1)
DECODING = Decoding(20, 4)
TRIE = toy_trie()
MakeEngine = Callable[[SidPolicy, float, SidPolicy | None], Engine]


def policy_config(folder: Path, case: dict[str, Any]) -> PolicyConfig:
    """Say which of the models in a folder a case trains, and how."""
    base = str(folder / case["head"])
    return PolicyConfig(backbone="hf", base=base, lora_rank=case.get("lora_rank", 0), lora_alpha=8.0, max_tokens=64)


def plain_engine(policy: SidPolicy, lr: float, reference: SidPolicy | None) -> Engine:
    """Train in this process alone."""
    return PlainEngine(policy, make_optimizer(policy, lr, 0.0), max_grad_norm=1.0, reference=reference)


def _deepspeed_engine(case: dict[str, Any], policy: SidPolicy, lr: float, reference: SidPolicy | None) -> Engine:
    from jobs.training.deepspeed_engine import DeepSpeedEngine

    train = TrainConfig(**{key: value for key, value in case.items() if key in TrainConfig.model_fields})
    if train.gradient_checkpointing:
        checkpoint_activations(policy)
    return DeepSpeedEngine(train, policy, make_optimizer(policy, lr, 0.0), max_grad_norm=1.0, reference=reference)


def fine_tune(config: PolicyConfig, make_engine: MakeEngine, worker: int | None, folder: Path, resume: bool = False) -> Progress:
    """Fine-tune on a worker's share, or on all with None; leaves `folder/best` and the checkpoint of the fourth epoch."""
    torch.manual_seed(0)
    policy = build_policy(config, LEVEL_SIZES, 0)
    adapt(policy, config)

    def save(record: dict[str, Any], write: Callable[[Path], None]) -> None:
        if record["epoch"] == 4 and not resume:
            (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
            write(folder / "checkpoint")

    return train_sft(
        make_engine(policy, SFT.lr, None),
        TRIE,
        _sequences(policy, worker),
        _valid(worker),
        SFT,
        decoding=DECODING,
        seed=0,
        best_folder=folder / "best",
        resume=folder / "checkpoint" if resume else None,
        save=save,
    )


def reinforce(config: PolicyConfig, make_engine: MakeEngine, worker: int | None, start: Path, folder: Path) -> dict[str, Any]:
    """Run GRPO from the weights in `start`; leaves `folder/last`, and returns the metrics and the lists of the last weights."""
    policy = load_policy(start)
    reference = None if config.lora_rank else load_policy(start)
    torch.manual_seed(0)
    adapt(policy, config)
    engine = make_engine(policy, GRPO.lr, reference)
    ids, prompts, targets = toy_prompts(TRIE)
    own = slice(None) if worker is None else slice(worker * NUM_ITEMS // NUM_WORKERS, (worker + 1) * NUM_ITEMS // NUM_WORKERS)
    progress = train_grpo(
        engine,
        TRIE,
        Prompts(strings(ids[own]), strings(prompts[own]), targets[own]),
        _valid(worker),
        GRPO if worker is None else GRPO.model_copy(update={"accumulate": 5}),
        reward_fn=_reward,
        decoding=DECODING,
        seed=0,
        best_folder=folder / "best-of-grpo",
    )
    with engine.generation_model() as model:
        if worker == 1:  # no other worker takes part in this
            return {}
        model.save(folder / "last")
        lists = lists_of(model)
    return {"grpo": progress.records, "lists": lists}


def lists_of(policy: SidPolicy) -> list[list[str]]:
    """Rank items after each prompt."""
    return [found.item_ids for found in recommend(policy, TRIE, toy_prompts(TRIE)[1], 10, 20)]


def _sequences(policy: SidPolicy, worker: int | None) -> TokenSequences:
    """Histories of the planted rule; the first worker alone has completions in words."""
    _, prompts, targets = toy_prompts(TRIE)
    codes = policy.tokenizer.batch_decode([policy.token_ids(0)[row : row + 1] for row in range(LEVEL_SIZES[0])])
    shares = []
    for rows in np.array_split(np.arange(NUM_ITEMS), NUM_WORKERS):
        sids = [
            "".join(f"<{'abc'[level]}_{code}>" for level, code in enumerate(TRIE.codes[targets[row]].tolist()) if code >= 0)
            for row in rows
        ]
        shares.append(Texts([prompts[row] for row in rows], sids))
    words = Texts([f"What is {code}?" for code in codes], ["weekend trout fishing", "fishing", "weekend", "oldest first"])
    texts = [shares[0], words, shares[1]] if worker is None else [shares[0], words] if worker == 0 else shares[1:]
    return pack_sequences(policy.tokenizer, texts, 64)


def _valid(worker: int | None) -> ValidExamples:
    """Three examples for the first worker and all others for the second: one decoder call, and six."""
    own = {None: slice(None), 0: slice(3), 1: slice(3, None)}[worker]
    _, prompts, targets = toy_prompts(TRIE)
    return ValidExamples(prompts[own], targets[own])


def _reward(rollouts: Rollouts, target_index: torch.Tensor, scores: torch.Tensor | None, user_ids: object) -> Rewards:
    """Reward items late in the catalogue; all groups of the second worker are dead."""
    first = torch.isin(target_index, toy_prompts(TRIE)[2][: NUM_ITEMS // NUM_WORKERS])
    late = torch.where(first[:, None], rollouts.item_index / NUM_ITEMS, 1.0)
    return Rewards(late, {"late": late})


def _work(rank: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    store, wait = f"file://{folder}/store", timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_WORKERS, timeout=wait)
    for name in cases:
        case, out = CASES[name], folder / name
        config, make_engine = policy_config(folder, case), partial(_deepspeed_engine, case)
        progress = fine_tune(config, make_engine, rank, out)
        dist.barrier()  # the first worker has written the best weights
        found = reinforce(config, make_engine, rank, out / "best", out)
        if rank == 0:
            (out / "found.json").write_text(json.dumps(found | {"sft": progress.records}))
    losses = take_steps_of_cases(folder)
    if rank == 0:
        (folder / "steps.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


if __name__ == "__main__":
    _work(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
