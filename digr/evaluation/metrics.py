"""Item-level ranking metrics with intervals, from nothing but the rank of each example's target.

With one target an example is its rank, so the histogram of ranks holds all that HR and NDCG need: a bootstrap resample
is one multinomial draw over the histogram and a sign-flip permutation one binomial draw per cell. Both are exactly the
usual resampling of examples, at a cost that does not grow with their number.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from digr.data.ids import IdIndex

HEAD_RATE = 0.2
"""Share of the items seen in training, the most frequent, whose targets make the slice `head`."""

INTERVAL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""


class Examples(NamedTuple):
    """The held-out examples of one split, in the order of `histories`."""

    example_ids: IdIndex
    targets: pa.Array
    slices: Mapping[str, Bool[np.ndarray, " B"]]


class SystemLists(NamedTuple):
    """What is kept of a system's ranked lists: where each target stood, and how far up each item ever came."""

    ranks: Int[np.ndarray, " B"]
    """Place of the target in its list from 1; 0 where the list does not hold it."""
    exposure: pa.Table
    """Columns item_id, best (highest place the item took in any list, 1 is first) and count."""


class Comparison(NamedTuple):
    """A paired comparison of two systems on the same examples."""

    difference: float
    low: float
    high: float
    p_value: float


def target_ranks(lists: pa.ListArray, targets: pa.Array) -> Int[np.ndarray, " B"]:
    """Return the place of each target in its list from 1, or 0 where it is absent; the first of several places counts."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.repeat(np.arange(len(lists)), lengths)
    hits = np.flatnonzero(pc.equal(lists.flatten(), targets.take(pa.array(rows))).to_numpy(zero_copy_only=False))
    starts = np.cumsum(lengths) - lengths
    ranks = np.zeros(len(lists), np.int32)
    ranks[rows[hits][::-1]] = (hits - starts[rows[hits]] + 1)[::-1]
    return ranks


def rank_system(batches: Iterable[pa.RecordBatch | pa.Table], examples: Examples, where: str) -> SystemLists:
    """Read a system's recommendations in any order and keep the ranks of the targets.

    Args:
        batches: columns example_id and item_ids (best first).
        examples: every one of them needs a list; lists of other examples are an error too.
        where: names the recommendations in errors.

    Raises:
        ValueError: an example has no list or two, or a list belongs to no example.
    """
    ranks = np.full(len(examples.example_ids), -1, np.int32)
    exposure = pa.table(
        {"item_id": pa.array([], pa.string()), "best": pa.array([], pa.int64()), "count": pa.array([], pa.int64())}
    )
    for batch in batches:
        chosen = examples.example_ids.find_all(batch["example_id"], where)
        if (ranks[chosen] >= 0).any() or len(np.unique(chosen)) < len(chosen):
            raise ValueError(f"{where}: an example has more than one list; expected one per example")
        lists = _one_chunk(batch["item_ids"])
        ranks[chosen] = target_ranks(lists, examples.targets.take(pa.array(chosen)))
        exposure = _merge_exposure(exposure, lists)
    missing = np.flatnonzero(ranks < 0)
    if len(missing):
        first = examples.example_ids.ids[int(missing[0])].as_py()
        raise ValueError(f"{where}: {len(missing)} of {len(ranks)} examples have no list (first {first!r}); run the job again")
    return SystemLists(ranks, exposure)


def rank_gains(name: str, k: int, depth: int) -> Float[np.ndarray, " R"]:
    """Return what each rank from 0 (absent) to `depth` is worth under `hr` or `ndcg` at cutoff `k`; Recall@k is HR@k."""
    ranks = np.arange(depth + 1)
    inside = (ranks >= 1) & (ranks <= k)
    return inside.astype(float) if name == "hr" else inside / np.log2(np.maximum(ranks, 1) + 1)


def evaluate_ranks(
    ranks: Int[np.ndarray, " B"],
    slices: Mapping[str, Bool[np.ndarray, " B"]],
    ks: Sequence[int],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return HR@k and NDCG@k of every slice with 95 % bootstrap intervals; an empty slice has NaN values and 0 examples."""
    depth, rows = max(ks), []
    capped = np.where(ranks > depth, 0, ranks)
    for name, mask in slices.items():
        histogram = np.bincount(capped[mask], minlength=depth + 1)
        num = int(histogram.sum())
        draws = rng.multinomial(num, histogram / num, size=resamples) if num else np.full((resamples, depth + 1), np.nan)
        for metric in ("hr", "ndcg"):
            for k in ks:
                gains = rank_gains(metric, k, depth)
                low, high = np.percentile(draws @ gains / max(num, 1), INTERVAL)
                value = float(histogram @ gains / num) if num else float("nan")
                row = {"slice": name, "name": metric, "k": k, "value": value, "low": float(low), "high": float(high)}
                rows.append(row | {"num_examples": num})
    return rows


def evaluate_exposure(lists: SystemLists, items: IdIndex, ks: Sequence[int]) -> list[dict[str, Any]]:
    """Return coverage@k (share of the catalogue in some top k) and the invalid rate (share of listed ids that are no item).

    Neither is a mean over examples, so their intervals are NaN.
    """
    real = items.find(lists.exposure["item_id"]) >= 0
    best, counts = lists.exposure["best"].to_numpy(), lists.exposure["count"].to_numpy()
    values = [("coverage", k, float(((best <= k) & real).sum() / max(len(items), 1))) for k in ks]
    values.append(("invalid_rate", max(ks), float(counts[~real].sum() / max(counts.sum(), 1))))
    nothing = {"low": float("nan"), "high": float("nan"), "num_examples": len(lists.ranks), "slice": "all"}
    return [nothing | {"name": name, "k": k, "value": value} for name, k, value in values]


def compare_ranks(
    ranks: Int[np.ndarray, " B"],
    baseline: Int[np.ndarray, " B"],
    name: str,
    k: int,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Comparison:
    """Return a system's gain over a baseline on the same examples, its bootstrap interval and two-sided p-value.

    The p-value is that of a paired permutation test: under the null each example's two values may be swapped.

    Raises:
        ValueError: the systems were ranked on different numbers of examples, or on none.
    """
    if len(ranks) != len(baseline) or not len(ranks):
        raise ValueError(f"comparison: needs the same examples, at least one; found {len(ranks)} and {len(baseline)}")
    ours, theirs = np.where(ranks > k, 0, ranks), np.where(baseline > k, 0, baseline)
    cells, counts = np.unique(ours.astype(np.int64) * (k + 1) + theirs, return_counts=True)
    gains = rank_gains(name, k, k)
    differences = gains[cells // (k + 1)] - gains[cells % (k + 1)]
    num = len(ranks)
    observed = float(differences @ counts / num)
    draws = rng.multinomial(num, counts / num, size=resamples) @ differences / num
    swapped = (2 * rng.binomial(counts, 0.5, size=(resamples, len(counts))) - counts) @ differences / num
    extreme = int((np.abs(swapped) >= abs(observed) - 1e-12).sum())
    low, high = np.percentile(draws, INTERVAL)
    return Comparison(observed, float(low), float(high), (1 + extreme) / (1 + resamples))


def evaluate_split(
    systems: Mapping[str, Callable[[], Iterable[pa.RecordBatch | pa.Table]]],
    examples: Examples,
    items: IdIndex,
    split: str,
    *,
    ks: Sequence[int],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Evaluate all systems of a run on one split: rows of the `metrics` table, and each system against all before it.

    Args:
        systems: name -> opens the system's recommendations; in the order of comparison, baselines first.
    """
    rows: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    ranks: dict[str, np.ndarray] = {}
    for system, open_batches in systems.items():
        lists = rank_system(open_batches(), examples, f"{system}, {split}")
        found = evaluate_ranks(lists.ranks, examples.slices, ks, resamples=resamples, rng=rng)
        found += evaluate_exposure(lists, items, ks)
        rows += [{"system": system, "split": split} | row for row in found]
        for baseline, theirs in ranks.items():
            for name in ("hr", "ndcg"):
                gain = compare_ranks(lists.ranks, theirs, name, max(ks), resamples=resamples, rng=rng)
                key = {"system": system, "baseline": baseline, "split": split, "name": name, "k": max(ks)}
                comparisons.append(key | gain._asdict())
        ranks[system] = lists.ranks
    return rows, comparisons


def target_slices(
    frequency: Int[np.ndarray, " N"], targets: Int[np.ndarray, " B"], repeated: Bool[np.ndarray, " B"]
) -> dict[str, Bool[np.ndarray, " B"]]:
    """Return the slices by target: all, head, tail, cold (never seen in training) and repeat (already in its history).

    Args:
        frequency: training occurrences of each item.
        targets: item index of each target.
        repeated: whether the target is in its own history.
    """
    seen = np.sort(frequency[frequency > 0])[::-1]
    threshold = seen[max(int(np.ceil(HEAD_RATE * len(seen))) - 1, 0)] if len(seen) else 1
    occurrences = frequency[targets]
    return {
        "all": np.ones(len(targets), bool),
        "head": occurrences >= threshold,
        "tail": (occurrences > 0) & (occurrences < threshold),
        "cold": occurrences == 0,
        "repeat": repeated,
    }


def _merge_exposure(exposure: pa.Table, lists: pa.ListArray) -> pa.Table:
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    places = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    more = pa.table({"item_id": lists.flatten(), "best": places, "count": np.ones(len(places), np.int64)})
    merged = pa.concat_tables([exposure, more]).group_by("item_id").aggregate([("best", "min"), ("count", "sum")])
    return merged.rename_columns({"best_min": "best", "count_sum": "count"})


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
