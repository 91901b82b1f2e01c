"""Turn histories into training sequences (`policy_examples`), and fine-tune the policy on them (`policy_sft`)."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.policy.examples import policy_examples
from digr.policy.model import build_policy
from digr.policy.sft import pack_sequences, train_sft
from digr.policy.validation import SCORE, Decoding
from digr.sids.trie import load_trie
from digr.tables import conform
from jobs import policy_data as data
from jobs import policy_training as training
from jobs.ray_train import fit
from jobs.runtime import Options, main, say, start_ray
from jobs.stage import Made, run_stage

EXAMPLES, STAGE = "policy_examples", "policy_sft"


def build_examples(config: Config, store: Store) -> Made:
    """Write `policy_examples` with Ray Data, part by part of `histories`."""
    import ray

    max_history = config.data.max_history
    filesystem, path = artifacts.filesystem_of(store.uri(EXAMPLES))

    def convert(rows: pa.Table) -> pa.Table:
        return policy_examples(conform("histories", rows, store.uri("histories")), data.load_sids(store), max_history)

    parts = ray.data.read_parquet(artifacts.list_parts(store.uri("histories")), filesystem=filesystem)
    parts.map_batches(convert, batch_size=None, batch_format="pyarrow").write_parquet(path, filesystem=filesystem)
    written = artifacts.open_parts(store.uri(EXAMPLES))
    counts = {split: written.count_rows(filter=pc.field("split") == split) for split in ("train", "valid")}
    for split, count in counts.items():
        if count < config.train.num_workers:
            raise ValueError(
                f"{store.uri('histories')}: {count} examples of split {split} for {config.train.num_workers} workers; "
                f"give more data, choose another data.split, or lower train.num_workers"
            )
    return Made(sum(counts.values()), facts={f"num_{split}": count for split, count in counts.items()})


def train_loop(values: dict[str, Any]) -> None:
    """Train in one worker."""
    import ray.train.torch

    config, store, device = values["config"], values["store"], ray.train.torch.get_device()
    trie, seed = load_trie(store), config.run.seed
    torch.manual_seed(seed)  # all workers must give new SID tokens of a Hugging Face model the same embeddings
    policy = build_policy(config.policy, trie.level_sizes, seed).to(device)
    sequences = pack_sequences(policy.tokenizer, _texts(data.read_shard("train")), config.policy.max_tokens)
    valid = data.read_valid("valid", trie, config.sft.max_valid_examples, seed)
    sft = config.sft
    engine = training.make_engine(config, policy, lr=sft.lr, weight_decay=sft.weight_decay, max_grad_norm=sft.max_grad_norm)
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


def _texts(batches: Iterator[pa.Table]) -> Iterator[tuple[list[str], list[str]]]:
    for batch in batches:
        yield batch["prompt"].to_pylist(), batch["completion"].to_pylist()


def tell(record: Mapping[str, Any]) -> None:
    """Print the progress line of an epoch."""
    line = f"epoch {record['epoch']}, loss {record['loss']:.4f}, {record['tokens_per_second']:.0f} tokens/s"
    line += f", {record['seconds']:.1f} s"
    if SCORE in record:
        line += f"; valid {SCORE} {record[SCORE]:.4f} (best {record['best']:.4f}), {record['valid_seconds']:.1f} s"
    say(STAGE, line)


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `policy_examples`, then `policy_sft`; a killed training goes on from its last checkpoint."""

    def examples(store: Store, work: str) -> Mapping[str, Made]:
        start_ray(config)
        return {EXAMPLES: build_examples(config, store)}

    def build(store: Store, work: str) -> Mapping[str, Made]:
        start_ray(config)
        datasets = {split: data.read_split(store, EXAMPLES, split) for split in ("train", "valid")}
        values = {"config": config, "store": store}
        result = fit(config, train_loop, values, work, datasets=datasets, env=training.worker_env(config), report=tell)
        progress = training.write_policy(store, STAGE, result.checkpoint)
        facts = {"best_epoch": progress.best_position, "epochs": progress.position, "steps": progress.step}
        last = {key: progress.records[-1][key] for key in ("loss", "tokens_per_second", "num_valid")}
        return {STAGE: Made(facts=facts | {f"valid_{SCORE}": progress.best} | last)}

    inputs = ["histories", "item_sids"]
    first = run_stage(config, options, outputs=[EXAMPLES], sections=["data"], inputs=inputs, build=examples)
    inputs = [EXAMPLES, "item_sids"]
    summary = run_stage(config, options, outputs=[STAGE], sections=["policy", "train", "sft"], inputs=inputs, build=build)
    return summary | {"outputs": first["outputs"] | summary["outputs"]}


if __name__ == "__main__":
    main(run)
