"""Evaluate every system of the run and the baselines on the same examples, and write the metrics table and the report."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, apply_overrides
from digr.data.ids import build_id_index
from digr.data.transitions import read_sequences
from digr.evaluation.baselines import BASELINES, collect_examples, count_training, recommend_baseline
from digr.evaluation.interest_metrics import read_carried_interests
from digr.evaluation.metrics import evaluate_split
from digr.evaluation.report import RunDescription, build_report, metrics_text, strict_json
from digr.evaluation.towers import SYSTEMS as TOWER_SYSTEMS
from digr.ranking.systems import systems_of
from digr.tables import HELD_OUT, table_spec
from jobs.runtime.command_line import main
from jobs.runtime.session import Options, log
from jobs.runtime.stage import Output, run_stage, store_of, trained_policies

System = tuple[str, str, str]  # name, variant, policy


def run(config: Config, options: Options) -> dict:
    """Evaluate the run and all its ablations at once."""
    if config.run.variant:
        raise ValueError(
            f"run.variant = {config.run.variant!r}: the run and its ablations are evaluated together; leave it empty"
        )
    deepest = max(config.evaluation.ks)
    if deepest > config.decoding.k:
        raise ValueError(f"evaluation.ks: cutoff {deepest} is beyond the {config.decoding.k} items listed; raise decoding.k")
    systems = find_systems(config, options)
    folders = [
        f"variants/{variant}/recommendations/{stage}" if variant else f"recommendations/{stage}" for _, variant, stage in systems
    ]
    labels = ["interest_labels", "canonical_interests"] if config.ranking.enabled else []
    summary = run_stage(
        config,
        options,
        outputs=["metrics", "report"],
        sections=["evaluation", "ablations"],
        inputs=["items", "histories", *labels, *(f"{folder}_{split}" for folder in folders for split in HELD_OUT)],
        build=partial(_build, config, systems),
    )
    return summary | {"report": f"{store_of(config).uri('report')}/report.html"}


def find_systems(config: Config, options: Options) -> list[System]:
    """Return every trained system of the run, in the order of the metrics table: towers first, the served one last."""
    found = [(name, "", name) for name in TOWER_SYSTEMS if config.towers.enabled]
    evidence = ("policy_grpo", "recommendations/grpo_valid")
    for each in config.ablations:
        variant = apply_overrides(config, {"run.variant": each.name, "grpo.enabled": each.grpo})
        found += [(f"sid_{policy}[{each.name}]", each.name, policy) for policy in trained_policies(variant, options, evidence)]
    found += [(f"sid_{policy}", "", policy) for policy in trained_policies(config, options, evidence)]
    return found + [(each.name, "", each.name) for each in systems_of(config.ranking.ablations)[::-1] if config.ranking.enabled]


def _build(config: Config, trained: Sequence[System], store: Store, work: str) -> Mapping[str, Output]:
    rng = np.random.default_rng(config.run.seed)
    items = build_id_index(artifacts.read_table(store, "items", ["item_id"])["item_id"])
    counts = count_training(read_sequences(store, partial(items.find_all, where="histories")), items, rng)
    interests = read_carried_interests(store, items) if config.ranking.enabled else None
    rows, comparisons = [], []
    for split in HELD_OUT:
        examples = collect_examples(_histories(store, split), counts, f"histories, {split}")
        systems = _baselines(store, split, counts, max(config.evaluation.ks)) | _trained(config, trained, split)
        log("metrics", f"{split}: {len(examples.targets)} examples, {len(systems)} systems")
        resamples = config.evaluation.bootstrap
        found = evaluate_split(
            systems, examples, items, split, ks=config.evaluation.ks, resamples=resamples, rng=rng, interests=interests
        )
        rows += found[0]
        comparisons += found[1]
    artifacts.write_table(store, "metrics", pa.Table.from_pylist(rows, table_spec("metrics").schema))
    _write(store, "metrics.json", strict_json({"metrics": rows, "comparisons": comparisons}))
    description = RunDescription(
        config=config.model_dump(mode="json"),
        variants=[ablation.name for ablation in config.ablations],
        command=shlex.join(["python", *sys.orig_argv[1:]]),
        generated=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    _write(store, "report.html", build_report(store, description, rows, comparisons))
    print(metrics_text(rows, "test"), flush=True)
    facts = {"systems": [*systems], "examples": len(examples.targets), "users": len(np.unique(examples.user))}
    return {"metrics": Output(len(rows), facts=facts), "report": Output()}


def _histories(store: Store, split: str) -> Iterator[pa.RecordBatch]:
    return iter(artifacts.dataset_of(store, "histories").to_batches(filter=pads.field("split") == split))


def _baselines(store: Store, split: str, counts, k: int) -> dict[str, Callable]:
    return {
        name: lambda depth=depth: recommend_baseline(_histories(store, split), counts, depth, k)
        for name, depth in BASELINES.items()
    }


def _trained(config: Config, systems: Sequence[System], split: str) -> dict[str, Callable]:
    columns = ["example_id", "item_ids"]
    return {
        name: partial(artifacts.iter_table, Store(config.run.dir, variant), f"recommendations/{stage}_{split}", columns)
        for name, variant, stage in systems
    }


def _write(store: Store, name: str, text: str) -> None:
    fs, path = artifacts.filesystem_of(store.uri("report"))
    with fs.open_output_stream(f"{path}/{name}") as stream:
        stream.write(text.encode())


if __name__ == "__main__":
    main(run)
