"""Evaluate several runs that differ only in their seed, by split and with both splits combined."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from jaxtyping import Bool

from digr import artifacts
from digr.artifacts import Store
from digr.config.ranking import Ablation
from digr.data.ids import IdIndex, build_id_index
from digr.data.transitions import read_sequences
from digr.evaluation.baselines import collect_examples, count_training
from digr.evaluation.interest_metrics import MEASURES, has_interest, read_carried_interests
from digr.evaluation.metrics import Examples, SystemLists, evaluate_interests, evaluate_ranks, rank_gains, rank_system
from digr.evaluation.towers import SYSTEMS as TOWER_SYSTEMS
from digr.ranking.systems import systems_of
from digr.tables import HELD_OUT


class SeedResults(NamedTuple):
    """Results of several runs."""

    systems: list[str]
    """Systems that all runs have lists of; the served one last."""
    metrics: list[dict[str, Any]]
    """Rows of the `metrics` table, means over the runs; `runs` has the value of each run."""
    comparisons: list[dict[str, Any]]
    """Gains of each system over all earlier ones, as in the report."""


def common_systems(runs: Sequence[Store]) -> list[str]:
    """Return the systems that every run has lists of, towers first and the served one last, without variants of ablations.

    Raises:
        ValueError: the runs have no common system.
    """
    names = [*TOWER_SYSTEMS, "sft", "grpo", *(each.name for each in systems_of(get_args(Ablation))[::-1])]
    lists = {name: [f"recommendations/{name}_{split}" for split in HELD_OUT] for name in names}
    found = [name for name in names if all(artifacts.read_manifest(run, each) for run in runs for each in lists[name])]
    if not found:
        places = ", ".join(run.root for run in runs)
        raise ValueError(f"{places}: no system has lists in every run; run `digr recommend CONFIG` for each of them")
    return found


def compare_runs(runs: Sequence[Store], *, ks: Sequence[int], resamples: int, rng: np.random.Generator) -> SeedResults:
    """Average runs per example, so that intervals are those of the mean over seeds.

    The interests of items are those of the first run.

    Raises:
        ValueError: the runs have different data, or no common system.
    """
    systems = common_systems(runs)
    _check_same_examples(runs)
    metrics, comparisons = list[dict[str, Any]](), list[dict[str, Any]]()
    items = build_id_index(artifacts.read_table(runs[0], "items", ["item_id"])["item_id"])
    interests = read_carried_interests(runs[0], items)
    for pooled in (*((split,) for split in HELD_OUT), HELD_OUT):
        examples = _examples(runs[0], items, pooled)
        item = examples.targets.dictionary_encode().indices.to_numpy()
        lists = {
            system: [rank_system(_lists(run, system, pooled), examples, f"{run.root}, {system}", interests, ks) for run in runs]
            for system in systems
        }
        ranks = {system: np.stack([each.ranks for each in found]) for system, found in lists.items()}
        found = evaluate_ranks(ranks, examples.user, item, examples.slices, ks, resamples=resamples, rng=rng)
        known = np.ones(len(item), bool) if interests is None else has_interest(examples.targets, interests)
        if interests is not None:
            values = {
                system: np.stack([each.interest for each in of if each.interest is not None]) for system, of in lists.items()
            }
            more = evaluate_interests(values, examples, interests, ks, resamples=resamples, rng=rng.spawn(1)[0])
            found = found[0] + more[0], found[1] + more[1]
        for row in found[0]:
            mask = examples.slices[row["slice"]] & (known if row["name"] in MEASURES else True)
            row["runs"] = [_mean(each, row["name"], row["k"], mask, ks) for each in lists[row["system"]]] if mask.any() else []
        named = {"split": "+".join(pooled)}
        metrics += [named | row for row in found[0]]
        comparisons += [named | row for row in found[1]]
    return SeedResults(systems, metrics, comparisons)


def _examples(store: Store, items: IdIndex, splits: Sequence[str]) -> Examples:
    # the generator only decides the order of equally popular items, which does not matter here
    counts = count_training(read_sequences(store, partial(items.find_all, where="histories")), items, np.random.default_rng(0))
    batches = artifacts.dataset_of(store, "histories").to_batches(filter=pads.field("split").isin(list(splits)))
    return collect_examples(iter(batches), counts, f"histories, {'+'.join(splits)}")


def _mean(lists: SystemLists, name: str, k: int, mask: Bool[np.ndarray, " B"], ks: Sequence[int]) -> float:
    """Return the mean of a measure over some examples of a run."""
    if lists.interest is not None and name in MEASURES:
        return float(lists.interest[mask, MEASURES.index(name) * len(ks) + list(ks).index(k)].mean())
    ranks = lists.ranks[mask]
    return float(rank_gains(name, k, k)[np.where(ranks > k, 0, ranks)].mean())


def _lists(store: Store, system: str, splits: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for split in splits:
        yield from artifacts.iter_table(store, f"recommendations/{system}_{split}", ["example_id", "item_ids"])


def _check_same_examples(runs: Sequence[Store]) -> None:
    columns = ["example_id", "user_id", "target"]
    tables = (artifacts.read_table(run, "histories", columns, split=HELD_OUT).sort_by("example_id") for run in runs)
    first = next(tables)
    for run, other in zip(runs[1:], tables, strict=True):
        if not other.equals(first):
            raise ValueError(f"{run.root}: its held-out examples differ from those of {runs[0].root}; compare runs of equal data")


def gains_text(comparisons: Sequence[Mapping[str, Any]], system: str, measures: Sequence[tuple[str, int]]) -> str:
    """Return a system's gains over each other one as a plain table by split, with both 95 % intervals."""
    lines = []
    for split, (name, k) in itertools.product(dict.fromkeys(row["split"] for row in comparisons), measures):
        lines.append(f"{split}, {name}@{k}: {system} gains over")
        for row in comparisons:
            if (row["split"], row["name"], row["k"], row["system"]) == (split, name, k, system):
                users, both = ((row[f"low{end}"], row[f"high{end}"]) for end in ("", "_with_items"))
                bounds = " ".join(f"[{low:.4f}, {high:.4f}]" for low, high in (users, both))
                lines.append(f"  {row['baseline']:<28} {row['difference']:+.4f} {bounds}")
    return "\n".join([*lines, "in brackets: 95 % intervals, over users and then over users and target items"])
