"""Runs of several seeds, whose lists are known, measured together."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, StaleArtifact, Store
from digr.config import build_config
from digr.evaluation.seeds import compare_runs
from jobs.compare_runs import run
from jobs.runtime.session import Options

ITEMS = [f"i{index:02d}" for index in range(12)]
HELD_OUT = {"v0": ("u", "valid"), "v1": ("v", "valid"), "s0": ("u", "test"), "s1": ("v", "test")}
"""Example -> user and split; the target is i00."""


def _put(store: Store, name: str, table: pa.Table, seed: int = 0) -> None:
    artifacts.commit(store, Manifest(name=name, rows=artifacts.write_table(store, name, table), seed=seed))


def _make_run(folder, seed: int, target: str = "i00", **places: dict[str, int]) -> Store:
    """Write a run in which the target has the given place of each example's list from 1, or none (0)."""
    store = Store(str(folder))
    _put(store, "items", pa.table({"item_id": ITEMS, "title": ITEMS}))
    rows = [("t0", "u", "train", ["i01"], "i02"), *((each, *HELD_OUT[each], ["i03"], target) for each in HELD_OUT)]
    names = ("example_id", "user_id", "split", "history", "target")
    _put(store, "histories", pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), seed)
    for system, known in places.items():
        for split in ("valid", "test"):
            ids = [each for each in HELD_OUT if HELD_OUT[each][1] == split]
            lists = [[*ITEMS[1 : known[each]], ITEMS[0]] if known[each] else ITEMS[1:] for each in ids]
            table = {
                "example_id": ids,
                "item_ids": pa.array(lists, pa.list_(pa.string())),
                "scores": [[0.0] * len(one) for one in lists],
            }
            _put(store, f"recommendations/{system}_{split}", pa.table(table), seed)
    return store


@pytest.fixture
def runs(tmp_path):
    """Two seeds: the ranker finds three of four targets with the first and one with the second, the policy one and none."""
    policy, ranked = dict.fromkeys(HELD_OUT, 0), {"v0": 1, "v1": 3, "s0": 1, "s1": 0}
    return [
        _make_run(tmp_path / "a", 0, sft=policy | {"s0": 2}, ranked=ranked),
        _make_run(tmp_path / "b", 1, sft=policy, ranked=policy | {"v0": 1}, grpo=policy),
    ]


def _value(rows, split, system, name, k):
    wanted = (split, "all", system, name, k)
    (row,) = [row for row in rows if (row["split"], row["slice"], row["system"], row["name"], row["k"]) == wanted]
    return row["value"], row["runs"]


def test_means_over_seeds_and_splits_are_those_of_all_examples(runs):
    found = compare_runs(runs, ks=(2, 5), resamples=50, rng=np.random.default_rng(0))
    assert found.systems == ["sft", "ranked"]  # only one run has GRPO
    assert _value(found.metrics, "valid", "ranked", "hr", 5) == (0.75, [1.0, 0.5])
    assert _value(found.metrics, "test", "ranked", "hr", 5) == (0.25, [0.5, 0.0])
    assert _value(found.metrics, "valid+test", "ranked", "hr", 5) == (0.5, [0.75, 0.25])
    assert _value(found.metrics, "valid+test", "ranked", "hr", 2) == (0.375, [0.5, 0.25])
    value, each = _value(found.metrics, "test", "sft", "ndcg", 5)
    assert value == pytest.approx(1 / np.log2(3) / 4) and each == pytest.approx([1 / np.log2(3) / 2, 0])
    gains = {(row["split"], row["name"], row["k"]): row for row in found.comparisons}
    assert len(gains) == len(found.comparisons) == 3 * 2 * 2
    pooled = gains["valid+test", "hr", 5]
    assert (pooled["system"], pooled["baseline"], pooled["difference"]) == ("ranked", "sft", 0.375)
    assert pooled["low"] <= pooled["difference"] <= pooled["high"]


def test_an_interval_is_that_of_the_mean_and_not_of_one_run(tmp_path):
    """With seeds that err on opposite users, their mean is the same for every user."""
    first, second = {"v0": 1, "v1": 0, "s0": 1, "s1": 0}, {"v0": 0, "v1": 1, "s0": 0, "s1": 1}
    stores = [_make_run(tmp_path / "a", 0, sft=first), _make_run(tmp_path / "b", 1, sft=second)]
    both = compare_runs(stores, ks=(1,), resamples=200, rng=np.random.default_rng(0)).metrics
    alone = compare_runs(stores[:1], ks=(1,), resamples=200, rng=np.random.default_rng(0)).metrics
    wanted = ("test", "hr", "all")
    (mean,) = [row for row in both if (row["split"], row["name"], row["slice"]) == wanted]
    (one,) = [row for row in alone if (row["split"], row["name"], row["slice"]) == wanted]
    assert (mean["value"], mean["low"], mean["high"]) == (0.5, 0.5, 0.5)
    assert (one["value"], one["low"], one["high"]) == (0.5, 0.0, 1.0)


def _config(runs):
    first, *others = runs
    tree = {"ranking": {"enabled": False}, "run": {"dir": first.root}, "evaluation": {"ks": [5, 10], "bootstrap": 100}}
    return build_config(tree | {"seeds": {"runs": [other.root for other in others]}}, "test")


def test_the_job_prints_tables_and_writes_strict_json(runs, capsys):
    summary = run(_config(runs), Options())
    assert (summary["status"], summary["facts"]["seed_comparison"]["systems"]) == ("built", ["sft", "ranked"])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("valid+test")][1:] == [
        "valid+test, ndcg@10: ranked gains over",
        "valid+test, hr@10: ranked gains over",
    ]
    assert any(line.split()[:2] == ["sft", "+0.3750"] for line in printed)
    text = Path(runs[0].root, "seed_comparison", "seed_comparison.json").read_text()
    found = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert [(each["run"], each["seed"]) for each in found["runs"]] == [(runs[0].root, 0), (runs[1].root, 1)]
    assert found["systems"] == ["sft", "ranked"]


def test_it_is_skipped_until_lists_of_another_run_change(runs, tmp_path):
    assert run(_config(runs), Options())["status"] == "built"
    assert run(_config(runs), Options())["status"] == "skipped"
    _make_run(tmp_path / "b", 2, sft=dict.fromkeys(HELD_OUT, 1), ranked=dict.fromkeys(HELD_OUT, 1))
    with pytest.raises(StaleArtifact, match=r"different: .*input file recommendations/sft_valid of .*/b"):
        run(_config(runs), Options())


def test_runs_of_other_data_or_without_lists_are_refused(runs, tmp_path):
    other = _make_run(tmp_path / "c", 2, target="i05", ranked=dict.fromkeys(HELD_OUT, 1))
    with pytest.raises(ValueError, match=f"{other.root}: its held-out examples differ from those of {runs[0].root}"):
        run(_config([runs[0], other]), Options())
    bare = _make_run(tmp_path / "d", 3)
    with pytest.raises(ValueError, match="no system has lists in every run"):
        run(_config([runs[0], bare]), Options())
    with pytest.raises(ValueError, match=r"seeds\.runs is empty: give the runs of other seeds"):
        run(_config(runs[:1]), Options())
