"""Fine-tuning against `transformers.Trainer`: real tokens per second, same model, same sequences, same tokens per step.

The peer is what a user would write: random batches, padded to their longest row, with the loss of the completion over the whole
vocabulary. Its rows per batch are as many as fill our token budget on average, padding included. Ours sorts pools of
sequences by length, fills the budget of every batch, and computes only the logits of the SIDs, normalised on the trie.
There are two models: the default `scratch` policy, whose vocabulary is the SIDs, and a two-layer Qwen3 with 32,000 words, a
language model that also has SIDs. Validation is not timed; both run one epoch to warm up. The two loops take turns, and the
speed-up is the median over the turns, so a slow moment of the machine meets both.
"""

import tempfile

import numpy as np
import torch
from transformers import GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from benchmarks.harness import Bar, Measurement, main
from benchmarks.shop import MAX_HISTORY, Shop, random_shop
from benchmarks.trainings import sft_epochs
from digr.config.policy import PolicyConfig, SftConfig
from digr.policy.examples import sequence_examples
from digr.policy.model import SidPolicy, build_scratch_policy
from digr.policy.training.batches import Texts, TokenSequences, pack_sequences
from digr.policy.vocabulary import scratch_tokenizer

BAR = Bar(
    full=1.5,
    quick=1.2,
    better="at_least",
    quick_reason="one epoch of a second or two, so that what each loop does once per epoch weighs more",
)
LEVELS = (32, 32, 32)
WORDS = 32_000
BATCH_TOKENS = 2048
TURNS = 3
IGNORED = -100


def scratch_model() -> PreTrainedModel:
    """Make the default scratch policy's decoder, without dropout."""
    lm = build_scratch_policy(PolicyConfig(dropout=0.0), LEVELS, seed=0).lm
    assert isinstance(lm, GPT2LMHeadModel)
    return lm


def language_model() -> PreTrainedModel:
    """Make a small Qwen3 whose vocabulary is mostly words."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=WORDS,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            use_cache=False,
        )
    )


def ours(lm: PreTrainedModel, shop: Shop, sequences: TokenSequences, epochs: int) -> float:
    """Return the real tokens per second of our loop, over the epochs after the first."""
    policy = SidPolicy(lm, scratch_tokenizer(LEVELS))
    later = sft_epochs(policy, shop.trie, sequences, SftConfig(epochs=epochs + 1, batch_tokens=BATCH_TOKENS))
    return sum(line["tokens_per_second"] * line["seconds"] for line in later) / sum(line["seconds"] for line in later)


def peer(lm: PreTrainedModel, sequences: TokenSequences, epochs: int) -> float:
    """Return the real tokens per second of `transformers.Trainer`, over the epochs after the first."""
    starts, ends = sequences.offsets[:-1].tolist(), sequences.offsets[1:].tolist()
    rows = [{"input_ids": sequences.tokens[start:end].tolist()} for start, end in zip(starts, ends, strict=True)]
    for row, prompt in zip(rows, sequences.prompt_lengths.tolist(), strict=True):
        row["labels"] = [IGNORED] * prompt + row["input_ids"][prompt:]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": 0, "labels": IGNORED}
        parts = {key: [row[key] + [fill[key]] * (width - len(row[key])) for row in batch] for key in fill}
        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        return {key: torch.tensor(value) for key, value in (parts | {"attention_mask": mask}).items()}

    seconds = []
    for number in (1, epochs):
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=rows_per_batch(sequences.lengths),
                num_train_epochs=number,
                learning_rate=1e-3,
                lr_scheduler_type="cosine",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
            )
            trained = Trainer(lm, arguments, train_dataset=rows, data_collator=collate).train()
            seconds.append(trained.metrics["train_runtime"])
    return epochs * int(sequences.lengths.sum()) / seconds[-1]


def rows_per_batch(lengths: np.ndarray) -> int:
    """Find how many random rows, padded to their longest, fill the token budget on average."""
    rng, num = np.random.default_rng(0), 1
    while num * np.mean([rng.choice(lengths, num).max() for _ in range(50)]) <= BATCH_TOKENS:
        num += 1
    return num - 1


def measure(quick: bool) -> Measurement:
    """Train both models with both loops; the ratio is the smaller of the two speed-ups."""
    shop, epochs = random_shop(LEVELS, 300 if quick else 2000), 1 if quick else 2
    examples = sequence_examples(shop.split("train"), shop.sids, MAX_HISTORY)
    texts = Texts(examples["prompt"].to_pylist(), examples["completion"].to_pylist())
    sequences = pack_sequences(scratch_tokenizer(LEVELS), [texts], 64)
    figures: dict[str, float] = {"sequences": len(sequences.lengths), "tokens": int(sequences.lengths.sum())}
    figures |= {"trainer_rows_per_step": rows_per_batch(sequences.lengths)}
    ratios = []
    for name, make in (("scratch", scratch_model), ("language_model", language_model)):
        turns = [(ours(make(), shop, sequences, epochs), peer(make(), sequences, epochs)) for _ in range(1 if quick else TURNS)]
        fast, slow = np.median(turns, axis=0).tolist()
        figures |= {f"{name}_tokens_per_second": round(fast), f"{name}_trainer_tokens_per_second": round(slow)}
        ratios.append(float(np.median([ours_speed / peer_speed for ours_speed, peer_speed in turns])))
        figures[f"{name}_speedup"] = round(ratios[-1], 2)
    return Measurement(figures, ratio=min(ratios))


if __name__ == "__main__":
    main(measure, BAR)
