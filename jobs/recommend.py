"""Rank items for every validation and test history: artifacts `recommendations/<system>_<valid|test>`.

The lists of the policies are the systems `sft` and `grpo`. The beams of the newest policy are also a source of candidates; a
ranker orders the union of all sources: `ranked`, and its ablations. The towers of `train_towers` are baselines.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.evaluation.towers import SYSTEMS as TOWER_SYSTEMS
from digr.partitions import parts_of
from digr.ranking.systems import System, systems_of
from digr.tables import HELD_OUT
from jobs.ranking.recommender import Recommend, names_of
from jobs.ranking.towers import RankTowers
from jobs.runtime.command_line import main
from jobs.runtime.datasets import map_parts
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage, store_of, trained_policies
from jobs.training.policy_data import count_cut


def run_one(config: Config, options: Options, policy: str, systems: Sequence[System]) -> dict[str, Any]:
    """Build the recommendations of one policy with Ray: one model start, all splits in one pass.

    Args:
        policy: the policy.
        systems: rankers with this policy as a source.
    """
    names = [names_of(name) for name in (policy, *(system.name for system in systems))]
    split_of = {name: split for each in names for split, name in each.items()}

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        log(f"recommendations/{policy}", f"beam {config.decoding.beam_width}, {len(systems)} rankers")
        rows = _rank_parts(config, store, Recommend, split_of, (policy, systems))
        facts = {name: count_cut(config, store, [split]) for name, split in split_of.items()}
        for name in names_of(policy).values():
            proven = artifacts.open_parts(store.uri(name)).count_rows(filter=pc.field("is_proven"))
            facts[name] |= {"k": config.decoding.k, "proven_rate": round(proven / max(1, rows[name]), 4)}
        return {name: Output(rows[name], facts=found) for name, found in facts.items()}

    inputs = ["histories", "item_sids", "interest_labels", f"policy_{policy}", *_canonical(config, options)]
    inputs += ["items", "ranking_index", "ranker"] * bool(systems)
    sections = ["decoding"] + ["ranking"] * bool(systems)
    return run_stage(config, options, outputs=list(split_of), sections=sections, inputs=inputs, build=build)


def _canonical(config: Config, options: Options) -> list[str]:
    """Return the artifact of canonical interests if the run has it; a dry run assumes it if lists are ranked."""
    there = artifacts.read_manifest(store_of(config), "canonical_interests") is not None
    return ["canonical_interests"] * (there or (options.dry_run and config.ranking.enabled))


def rank_towers(config: Config, options: Options) -> dict[str, Any]:
    """Build the recommendations of the trained baselines with Ray."""
    split_of = {name: split for system in TOWER_SYSTEMS for split, name in names_of(system).items()}

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        rows = _rank_parts(config, store, RankTowers, split_of)
        return {name: Output(rows[name], facts={"k": config.decoding.k}) for name in split_of}

    inputs = ["items", "histories", "item_embeddings", "towers"]
    return run_stage(config, options, outputs=list(split_of), sections=["decoding"], inputs=inputs, build=build)


def _rank_parts(
    config: Config, store: Store, worker: Callable[..., Any], split_of: Mapping[str, str], arguments: tuple[Any, ...] = ()
) -> Mapping[str, int]:
    """Write the recommendations of all parts of users in workers; return the rows of each output.

    Args:
        split_of: output -> split of its rows.
    """
    histories = artifacts.dataset_of(store, "histories")
    expected = {split: histories.count_rows(filter=pc.field("split") == split) for split in HELD_OUT}
    counts = ", ".join(f"{count} {split}" for split, count in expected.items())
    log(next(iter(split_of)), f"{counts} histories, {config.cluster.encode_workers} workers")
    rows = map_parts(config, store, worker, parts_of(store, "user"), list(split_of), arguments=arguments)
    for name, split in split_of.items():
        if rows[name] != expected[split]:
            raise ValueError(f"{store.uri(name)}: {rows[name]} rows written, but its split has {expected[split]} histories")
    return rows


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build the recommendations of every system that this run has on validation and test histories."""
    *older, newest = trained_policies(config, options)
    done = {policy: run_one(config, options, policy, []) for policy in older}
    done[newest] = run_one(config, options, newest, systems_of(config.ranking.ablations) if config.ranking.enabled else [])
    if config.towers.enabled:
        done["towers"] = rank_towers(config, options)
    statuses = {summary["status"] for summary in done.values()}
    return {"stage": "recommendations", "status": statuses.pop() if len(statuses) == 1 else "built", "lists": done}


if __name__ == "__main__":
    main(run)
