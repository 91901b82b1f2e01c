"""Probe semantic IDs: train a small policy on them and evaluate it on validation."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int32

from digr.config import Config
from digr.data.ids import build_id_index
from digr.policy.examples import Sids, policy_examples
from digr.policy.model import build_policy
from digr.policy.prompts import items_that_fit
from digr.policy.training.batches import Texts, pack_sequences
from digr.policy.training.engine import PlainEngine, make_optimizer
from digr.policy.training.sft import train_sft
from digr.policy.training.validation import Decoding, ValidExamples
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import build_trie


def validation_ndcg(
    item_ids: pa.Array, codes: Int32[np.ndarray, "N L"], level_sizes: tuple[int, ...], histories: pa.Table, config: Config
) -> float:
    """Train the configured policy by supervised fine-tuning in this process; return its best NDCG@10 on validation.

    Args:
        item_ids: items of the rows of `codes`.
        codes: unique SIDs, -1 after the end of a shorter one.
        level_sizes: codes of each column.
        histories: rows of `histories`, train and validation.
        config: uses `policy`, `sft`, `decoding` and the run's seed. Only sequences of SIDs are trained, no text tasks.
    """
    trie = build_trie(item_ids, codes, level_sizes)
    sids = Sids(build_id_index(item_ids), sid_texts(codes))
    max_history = min(config.data.max_history, items_that_fit(config.policy.max_tokens, len(level_sizes)))
    examples = policy_examples(histories, sids, max_history)
    train, valid = (examples.filter(pc.equal(examples["split"], split)) for split in ("train", "valid"))
    chosen = np.random.default_rng(config.run.seed).permutation(len(valid))[: config.sft.max_valid_examples]
    valid = valid.take(pa.array(np.sort(chosen)))
    policy = build_policy(config.policy, level_sizes, config.run.seed)
    texts = [Texts(train["prompt"].to_pylist(), train["completion"].to_pylist())]
    targets = build_id_index(trie.item_ids).find(valid["target"])
    optimizer = make_optimizer(policy, config.sft.lr, config.sft.weight_decay)
    with tempfile.TemporaryDirectory() as folder:
        progress = train_sft(
            PlainEngine(policy, optimizer, max_grad_norm=config.sft.max_grad_norm, precision="fp32"),
            trie,
            pack_sequences(policy.tokenizer, texts, policy.max_tokens),
            ValidExamples(valid["prompt"].to_pylist(), torch.from_numpy(targets)),
            config.sft,
            decoding=Decoding(config.sft.valid_beam_width, config.decoding.batch_size),
            seed=config.run.seed,
            best_folder=Path(folder) / "best",
        )
    return progress.best
