"""Refine the policy with GRPO under the interest-aware reward: artifact `policy_grpo`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.policy.model import load_policy
from digr.policy.training.grpo import Prompts, kept_record, train_grpo
from digr.policy.training.validation import SCORE, Decoding, Progress
from digr.sids.trie import load_trie
from jobs.runtime.command_line import main
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage
from jobs.training import policy_data as data
from jobs.training import policy_training as training

STAGE = "policy_grpo"
INPUTS = ("policy_sft", "histories", "item_sids", "interest_labels", "item_embeddings")
PRINTED_STEPS = 5
"""Steps between progress lines."""


def train_loop(values: dict[str, Any]) -> None:
    """Train in one worker."""
    import ray.train.torch

    config, store, device = values["config"], values["store"], ray.train.torch.get_device()
    trie, seed, grpo = load_trie(store), config.run.seed, config.grpo
    with artifacts.local_files(store, "policy_sft") as folder:
        policy = load_policy(folder, str(device), "fp32", config.policy.attention)
        # adapters are new: the policy without them is the reference
        reference = None if config.policy.lora_rank else load_policy(folder, str(device), "fp32", config.policy.attention)
    rows = data.concat(["example_id", "user_id", "prompt", "target"], data.read_shard("train"))
    targets = data.item_positions(trie, rows["target"])
    ids, texts, users = (rows[name].combine_chunks() for name in ("example_id", "prompt", "user_id"))
    prompts = Prompts(ids, texts, targets, users.to_pylist())
    valid = data.read_valid("valid", trie, grpo.max_valid_examples, seed)
    engine = training.make_engine(config, policy, grpo, weight_decay=0.0, reference=reference)

    def report(record: dict[str, Any]) -> None:
        if record["step"] % PRINTED_STEPS == 0:
            ray.train.report(record)

    with training.folders() as (resume, best_folder):
        train_grpo(
            engine,
            trie.to(device),
            prompts,
            valid,
            grpo,
            reward_fn=data.load_reward(config, store, trie, device, [*prompts.user_ids, *valid.user_ids]),
            decoding=Decoding(max(grpo.valid_beam_width, grpo.group_size), config.decoding.batch_size),
            seed=seed,
            best_folder=best_folder,
            resume=resume,
            save=training.save,
            report=report,
        )


def print_record(num_steps: int, record: Mapping[str, Any]) -> None:
    """Print the progress line of a step."""
    BARS.show(STAGE, record["step"], num_steps)
    line = f"step {record['step']}"
    if "reward" in record:
        line += f", reward {record['reward']:.4f}, dead groups {record['dead_group_rate']:.0%}, KL {record['kl']:.2e}; seconds: "
        line += ", ".join(f"{part} {record[f'{part}_seconds']:.2f}" for part in ("rollout", "reward", "update"))
    if SCORE in record:
        line += f"; valid {SCORE} {record[SCORE]:.4f} (kept {record['best']:.4f}), reward {record['valid_reward']:.4f}, "
        line += f"{record['valid_seconds']:.1f} s"
    log(STAGE, line)


def facts_of(progress: Progress) -> dict[str, Any]:
    """Return facts of the training: whether a policy beat the SFT policy, mean rewards of the first and last tenth of steps."""
    steps = [record for record in progress.records if "reward" in record]
    tenth = max(len(steps) // 10, 1)

    def mean(key: str, records: list[dict[str, Any]]) -> float:
        return sum(record[key] for record in records) / len(records)

    best = progress.best_position
    facts: dict[str, Any] = {"steps": progress.step, "best_step": best, "better_than_sft": best > 0}
    for name, record in (("sft_valid", progress.records[0]), ("valid", kept_record(progress))):
        facts |= {f"{name}_{SCORE}": record[SCORE], f"{name}_reward": record["valid_reward"]}
    facts |= {"first_reward": mean("reward", steps[:tenth]), "last_reward": mean("reward", steps[-tenth:])}
    parts = ("dead_group_rate", "rollout_seconds", "reward_seconds", "update_seconds")
    return facts | {key: mean(key, steps) for key in parts}


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `policy_grpo`; if nothing beats the SFT policy on validation, its weights are the SFT weights."""
    if not config.grpo.enabled:
        raise ValueError("grpo.enabled = false: this run has no GRPO; set it to true to train policy_grpo")

    inputs = [*INPUTS, *data.reward_inputs(config, options)]

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        datasets = {split: data.read_prompts(config, store, split) for split in ("train", "valid")}
        printed = partial(print_record, config.grpo.steps)
        progress = training.train(config, store, STAGE, train_loop, work, datasets=datasets, print_record=printed)
        return {STAGE: Output(facts=facts_of(progress) | data.count_cut(config, store, ("train", "valid")))}

    sections = ["policy", *(["tasks"] if config.policy.prompt_interests else []), "train", "grpo"]
    return run_stage(
        config, options, outputs=[STAGE], sections=sections, inputs=inputs, build=build, may_change=training.MAY_CHANGE
    )


if __name__ == "__main__":
    main(run)
