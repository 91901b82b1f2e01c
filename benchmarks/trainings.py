"""The policy's trainings in this process, without Ray: those of a run, and those that are only timed."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.policy import GrpoConfig, RewardConfig, SftConfig
from digr.policy.examples import policy_examples, prompt_examples
from digr.policy.model import SidPolicy, build_policy, load_policy
from digr.policy.training.batches import Texts, TokenSequences, pack_sequences
from digr.policy.training.engine import PlainEngine, Precision, make_optimizer
from digr.policy.training.grpo import Prompts, RewardFn, Rewards, train_grpo
from digr.policy.training.rollouts import Rollouts
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding, Progress, ValidExamples
from digr.policy.vocabulary import sid_texts
from digr.rewards.interest_reward import reward_terms, reward_weights, total_reward
from digr.sids.trie import SidTrie, load_trie

GRPO_PARTS = ("rollout", "reward", "update")


def fine_tune(config: Config, store: Store, best_folder: Path) -> Progress:
    """Make the training sequences and train the policy; its best weights end in `best_folder`."""
    from jobs.training.policy_data import load_sids

    trie, sft = load_trie(store), config.sft
    examples = policy_examples(artifacts.read_table(store, "histories"), load_sids(store), config.data.max_history)
    train = examples.filter(pc.equal(examples["split"], "train"))
    policy = build_policy(config.policy, trie.level_sizes, config.run.seed)
    texts = [Texts(train["prompt"].to_pylist(), train["completion"].to_pylist())]
    return train_sft(
        _engine(policy, sft, sft.weight_decay),
        trie,
        pack_sequences(policy.tokenizer, texts, config.policy.max_tokens),
        _valid(config, trie, examples, sft.max_valid_examples),
        sft,
        decoding=Decoding(sft.valid_beam_width, config.decoding.batch_size),
        seed=config.run.seed,
        best_folder=best_folder,
        save=_save,
    )


def reinforce(config: Config, store: Store, sft_folder: Path, best_folder: Path) -> Progress:
    """Train a fine-tuned policy with GRPO; its best weights end in `best_folder`."""
    from jobs.training.policy_data import item_positions, load_reward, load_sids

    trie, grpo = load_trie(store), config.grpo
    rows = prompt_examples(artifacts.read_table(store, "histories"), load_sids(store), config.data.max_history)
    train = rows.filter(pc.equal(rows["split"], "train"))
    targets = item_positions(trie, train["target"])
    return train_grpo(
        _engine(load_policy(sft_folder), grpo, 0.0, reference=load_policy(sft_folder)),
        trie,
        Prompts(train["example_id"].combine_chunks(), train["prompt"].combine_chunks(), targets),
        _valid(config, trie, rows, grpo.max_valid_examples),
        grpo,
        reward_fn=load_reward(config, store, trie, torch.device("cpu")),
        decoding=Decoding(max(grpo.valid_beam_width, grpo.group_size), config.decoding.batch_size),
        seed=config.run.seed,
        best_folder=best_folder,
        save=_save,
    )


def sft_epochs(
    policy: SidPolicy, trie: SidTrie, sequences: TokenSequences, config: SftConfig, precision: Precision = "fp32"
) -> list[dict[str, Any]]:
    """Train a policy for its loop's speed; returns the metrics of the epochs after the first, which warms up."""
    config = config.model_copy(update={"eval_every_epochs": config.epochs})
    with tempfile.TemporaryDirectory() as folder:
        progress = train_sft(
            _engine(policy, config, config.weight_decay, precision=precision),
            trie,
            sequences,
            _one_example(trie),
            config,
            decoding=Decoding(10, 1),
            seed=0,
            best_folder=Path(folder) / "best",
        )
    return progress.records[1:]


def grpo_seconds(
    policy: SidPolicy,
    reference: SidPolicy,
    trie: SidTrie,
    prompts: Prompts,
    config: GrpoConfig,
    *,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """Train a policy and return the median seconds of each part of a step, the first step left out."""
    with tempfile.TemporaryDirectory() as folder:
        progress = train_grpo(
            _engine(policy, config, 0.0, reference=reference, precision=precision),
            trie,
            prompts,
            _one_example(trie),
            config.model_copy(update={"eval_every_steps": config.steps}),
            reward_fn=random_reward(trie),
            decoding=Decoding(config.group_size, 1),
            seed=0,
            best_folder=Path(folder) / "best",
        )
    steps = [record for record in progress.records if "reward" in record][1:]
    return {part: float(np.median([record[f"{part}_seconds"] for record in steps])) for part in GRPO_PARTS}


def random_reward(trie: SidTrie) -> RewardFn:
    """Make the default reward with random qualities and interest vectors; a GPU is done with it when it returns."""
    generator, device = torch.Generator().manual_seed(0), trie.codes.device
    quality = torch.rand(trie.num_items, generator=generator).to(device)
    vectors = torch.nn.functional.normalize(torch.randn(trie.num_items, 384, generator=generator), dim=1).to(device)
    weights = reward_weights(RewardConfig())

    def reward(rollouts: Rollouts, target_index: torch.Tensor, scores: torch.Tensor | None, user_ids: object) -> Rewards:
        targets = trie.codes[target_index]
        terms = reward_terms(
            rollouts.codes, targets, rollouts.item_index, target_index, quality, interest_embeddings=vectors, scores=scores
        )
        total = total_reward(terms, weights)
        if device.type == "cuda":
            torch.cuda.synchronize()  # else its time would count for the next part that waits for the GPU
        return Rewards(total, terms)

    return reward


def _engine(
    policy: SidPolicy,
    config: SftConfig | GrpoConfig,
    weight_decay: float,
    *,
    reference: SidPolicy | None = None,
    precision: Precision = "fp32",
) -> PlainEngine:
    optimizer = make_optimizer(policy, config.lr, weight_decay)
    return PlainEngine(policy, optimizer, max_grad_norm=config.max_grad_norm, precision=precision, reference=reference)


def _one_example(trie: SidTrie) -> ValidExamples:
    """Return the least that a training accepts as validation."""
    return ValidExamples(sid_texts(trie.codes[:1].cpu().numpy()), torch.tensor([0]))


def _valid(config: Config, trie: SidTrie, examples: pa.Table, max_examples: int) -> ValidExamples:
    from jobs.training.policy_data import item_positions

    valid = examples.filter(pc.equal(examples["split"], "valid"))
    rows = np.sort(np.random.default_rng(config.run.seed).permutation(len(valid))[:max_examples])
    valid = valid.take(pa.array(rows))
    return ValidExamples(valid["prompt"].to_pylist(), item_positions(trie, valid["target"]))


def _save(record: dict, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
