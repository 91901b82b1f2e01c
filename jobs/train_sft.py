"""Turn histories into training sequences (`policy_examples`), and fine-tune the policy on them (`policy_sft`)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from digr.artifacts import Store
from digr.config import Config
from digr.policy.model import build_policy
from digr.policy.training.batches import pack_sequences
from digr.policy.training.sft import NUM_CUT, train_sft
from digr.policy.training.validation import SCORE, Decoding
from digr.sids.trie import load_trie
from jobs.runtime.command_line import main
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage
from jobs.training import policy_data as data
from jobs.training import policy_training as training
from jobs.training.policy_examples import STAGE as EXAMPLES
from jobs.training.policy_examples import build_examples, code_texts, read_texts, reads_text

STAGE = "policy_sft"


def train_loop(values: dict[str, Any]) -> None:
    """Train in one worker."""
    import ray.train.torch

    config, store, device = values["config"], values["store"], ray.train.torch.get_device()
    trie, seed = load_trie(store), config.run.seed
    torch.manual_seed(seed)  # all workers must give new SID tokens of a Hugging Face model the same embeddings
    policy = build_policy(config.policy, trie.level_sizes, seed, code_texts(config, store, trie)).to(device)
    texts = read_texts(config, data.read_shard("train"))
    sequences = pack_sequences(policy.tokenizer, texts, policy.max_tokens)
    valid = data.read_valid("valid", trie, config.sft.max_valid_examples, seed)
    sft = config.sft
    engine = training.make_engine(config, policy, sft, weight_decay=sft.weight_decay)
    with training.folders() as (resume, best_folder):
        train_sft(
            engine,
            trie.to(device),
            sequences,
            valid,
            sft,
            decoding=Decoding(sft.valid_beam_width, config.decoding.batch_size),
            seed=seed,
            best_folder=best_folder,
            resume=resume,
            save=training.save,
            report=ray.train.report,
        )


def print_record(num_epochs: int, record: Mapping[str, Any]) -> None:
    """Print the progress line of an epoch, or of a part of one."""
    BARS.show(STAGE, record["epoch"], num_epochs)
    line = f"epoch {record['epoch']:g}, loss {record['loss']:.4f}, {record['tokens_per_second']:.0f} tokens/s"
    line += f", {record['seconds']:.1f} s"
    if SCORE in record:
        line += f"; valid {SCORE} {record[SCORE]:.4f} (best {record['best']:.4f}), {record['valid_seconds']:.1f} s"
    log(STAGE, line)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `policy_examples`, then `policy_sft`; a killed training resumes from its last checkpoint."""

    def examples(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        return {EXAMPLES: build_examples(config, store)}

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        datasets = {split: data.read_split(store, EXAMPLES, split) for split in ("train", "valid")}
        printed = partial(print_record, config.sft.epochs)
        progress = training.train(config, store, STAGE, train_loop, work, datasets=datasets, print_record=printed)
        facts = {"best_epoch": progress.best_position, "epochs": progress.position, "steps": progress.step}
        last = {key: progress.records[-1][key] for key in ("loss", "tokens_per_second", "num_valid", *NUM_CUT)}
        return {STAGE: Output(facts=facts | {f"valid_{SCORE}": progress.best} | last)}

    words, mix = (["items", "interest_labels"], ["tasks"]) if reads_text(config) else ([], [])
    inputs = ["histories", "item_sids", *words]
    first = run_stage(config, options, outputs=[EXAMPLES], sections=["data", "policy", *mix], inputs=inputs, build=examples)
    inputs, sections = [EXAMPLES, "item_sids", *words], ["policy", "train", "sft", *mix]
    summary = run_stage(
        config,
        options,
        outputs=[STAGE],
        sections=sections,
        inputs=inputs,
        models={"policy.base": config.policy.base_model} if reads_text(config) else {},
        build=build,
        may_change=training.MAY_CHANGE,
    )
    return summary | {"outputs": first["outputs"] | summary["outputs"]}


if __name__ == "__main__":
    main(run)
