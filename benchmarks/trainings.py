"""The policy's trainings of a run in this process, without Ray: what the benchmarks compare and repeat."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.policy import GrpoConfig, SftConfig
from digr.policy.examples import policy_examples, prompt_examples
from digr.policy.model import SidPolicy, build_policy, load_policy
from digr.policy.training.batches import Texts, pack_sequences
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.grpo import Prompts, train_grpo
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding, Progress, ValidExamples
from digr.sids.trie import SidTrie, load_trie


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


def _engine(
    policy: SidPolicy, config: SftConfig | GrpoConfig, weight_decay: float, reference: SidPolicy | None = None
) -> PlainEngine:
    optimizer = make_optimizer(policy, config.lr, weight_decay)
    return PlainEngine(policy, optimizer, max_grad_norm=config.max_grad_norm, reference=reference)


def _valid(config: Config, trie: SidTrie, examples: pa.Table, max_examples: int) -> ValidExamples:
    from jobs.training.policy_data import item_positions

    valid = examples.filter(pc.equal(examples["split"], "valid"))
    rows = np.sort(np.random.default_rng(config.run.seed).permutation(len(valid))[:max_examples])
    valid = valid.take(pa.array(rows))
    return ValidExamples(valid["prompt"].to_pylist(), item_positions(trie, valid["target"]))


def _save(record: dict, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
