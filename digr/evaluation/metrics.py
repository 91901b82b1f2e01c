"""Ranking metrics, computed from the rank of each example's target and its user, and from the interests of listed items.

Intervals and paired tests resample users; differences of systems have a second interval, over users and target items. See
`digr.evaluation.resampling`.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from digr.data.ids import IdIndex
from digr.evaluation.interest_metrics import MEASURES, CarriedInterests, has_interest, interest_values
from digr.evaluation.resampling import resample_users, two_way_errors

HEAD_RATE = 0.2
"""The slice `head` has the targets among this share of the items of training, the most frequent ones."""

RARE_TIMES = 5
"""Most training interactions of a rare item."""

TOP_TARGETS = 2
"""Number of most frequent targets that the slice `others` leaves out."""

INTERVAL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

INTERVAL_ERRORS = 1.96
"""Half width of a 95 % interval in standard errors."""


class Examples(NamedTuple):
    """The held-out examples of one split, in the order of `histories`."""

    example_ids: IdIndex
    user: Int[np.ndarray, " B"]
    """Number of each example's user."""
    targets: pa.Array
    slices: Mapping[str, Bool[np.ndarray, " B"]]


class SystemLists(NamedTuple):
    """Summary of a system's ranked lists: the rank of each target, and the best rank of each item."""

    ranks: Int[np.ndarray, " B"]
    """Rank of the target in its list, from 1; 0 if the list does not contain it."""
    exposure: pa.Table
    """Columns item_id, best (best rank of the item in any list, from 1) and count."""
    interest: Float[np.ndarray, "B M"] | None
    """The measures of `interest_metrics.interest_values`; None if no interests are known."""


def target_ranks(lists: pa.ListArray, targets: pa.Array) -> Int[np.ndarray, " B"]:
    """Return the rank of each target in its list from 1, or 0 if it is absent; the first of several places counts."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.repeat(np.arange(len(lists)), lengths)
    hits = np.flatnonzero(pc.equal(lists.flatten(), targets.take(pa.array(rows))).to_numpy(zero_copy_only=False))
    starts = np.cumsum(lengths) - lengths
    ranks = np.zeros(len(lists), np.int32)
    ranks[rows[hits][::-1]] = (hits - starts[rows[hits]] + 1)[::-1]
    return ranks


def rank_system(
    batches: Iterable[pa.RecordBatch | pa.Table],
    examples: Examples,
    where: str,
    interests: CarriedInterests | None = None,
    ks: Sequence[int] = (),
) -> SystemLists:
    """Read a system's recommendations in any order; keep the ranks of the targets, and whether their interests are served.

    Args:
        batches: columns example_id and item_ids (best first).
        examples: all examples of the split; each needs exactly one list.
        where: name of the recommendations in errors.
        interests: the interests of items, if they are known.
        ks: cutoffs of the measures of interests.

    Raises:
        ValueError: an example has no list or several, or a list belongs to no example.
    """
    ranks = np.full(len(examples.example_ids), -1, np.int32)
    interest = None if interests is None else np.zeros((len(ranks), len(MEASURES) * len(ks)), np.float32)
    exposure = pa.table(
        {"item_id": pa.array([], pa.string()), "best": pa.array([], pa.int64()), "count": pa.array([], pa.int64())}
    )
    for batch in batches:
        chosen = examples.example_ids.find_all(batch["example_id"], where)
        if (ranks[chosen] >= 0).any() or len(np.unique(chosen)) < len(chosen):
            raise ValueError(f"{where}: an example has more than one list; expected one per example")
        lists = _one_chunk(batch["item_ids"])
        targets = examples.targets.take(pa.array(chosen))
        ranks[chosen] = target_ranks(lists, targets)
        if interest is not None and interests is not None:
            interest[chosen] = interest_values(lists, targets, interests, ks)
        exposure = _merge_exposure(exposure, lists)
    missing = np.flatnonzero(ranks < 0)
    if len(missing):
        first = examples.example_ids.ids[int(missing[0])].as_py()
        raise ValueError(f"{where}: {len(missing)} of {len(ranks)} examples have no list (first {first!r}); run the job again")
    return SystemLists(ranks, exposure, interest)


def rank_gains(name: str, k: int, depth: int) -> Float[np.ndarray, " R"]:
    """Return the gain of each rank from 0 (absent) to `depth` under `hr` or `ndcg` at cutoff `k`; Recall@k equals HR@k."""
    ranks = np.arange(depth + 1)
    inside = (ranks >= 1) & (ranks <= k)
    return inside.astype(float) if name == "hr" else inside / np.log2(np.maximum(ranks, 1) + 1)


def evaluate_ranks(
    ranks: Mapping[str, Int[np.ndarray, " B"] | Int[np.ndarray, "R B"]],
    user: Int[np.ndarray, " B"],
    item: Int[np.ndarray, " B"],
    slices: Mapping[str, Bool[np.ndarray, " B"]],
    ks: Sequence[int],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return HR@k and NDCG@k of each system on each slice, and the gains of each system over all earlier ones.

    Metrics and gains have 95 % bootstrap intervals over users. Gains also have one over users and target items (`low_with_items`,
    `high_with_items`), from two-way clustered errors, and the two-sided p-value of a paired permutation test over users. An empty
    slice has NaN values and 0 examples. All systems are measured on the same resamples, on a slice by the mean over a resample's
    examples there.

    Args:
        ranks: rank of each example's target in each system's list from 1, 0 if absent; baselines first. Several runs give a row
            each; they are averaged per example, so that intervals are those of the mean.
        user: number of each example's user.
        item: number of each example's target item.

    Raises:
        ValueError: systems were ranked on different numbers of examples, or on none.
    """
    if {found.shape[-1] for found in ranks.values()} != {len(user)} or not len(user):
        sizes = ", ".join(f"{system} {found.shape[-1]}" for system, found in ranks.items())
        raise ValueError(f"evaluation: every system needs a rank for each of {len(user)} examples, at least one; found {sizes}")
    measures = [(name, k) for name in ("hr", "ndcg") for k in ks]
    gains = np.stack([rank_gains(name, k, max(ks)) for name, k in measures], axis=1)

    def values(rows: Int[np.ndarray, " b"]) -> list[Float[np.ndarray, "b M"]]:
        places = (np.atleast_2d(found)[:, rows] for found in ranks.values())
        return [np.mean([gains[np.where(run > max(ks), 0, run)] for run in found], axis=0) for found in places]

    return _compare(list(ranks), measures, values, user, item, slices=slices, resamples=resamples, rng=rng)


def evaluate_interests(
    values: Mapping[str, Float[np.ndarray, "B M"] | Float[np.ndarray, "R B M"]],
    examples: Examples,
    interests: CarriedInterests,
    ks: Sequence[int],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the measures of `interest_metrics` of each system as `evaluate_ranks` does, of examples whose target has interests.

    Args:
        values: of each system, see `SystemLists.interest`; several runs are averaged per example.
    """
    known = np.flatnonzero(has_interest(examples.targets, interests))
    item = examples.targets.dictionary_encode().indices.to_numpy()
    slices = {name: mask[known] for name, mask in examples.slices.items()}
    measures = [(name, k) for name in MEASURES for k in ks]
    found = [found.reshape(-1, *found.shape[-2:]) for found in values.values()]

    def chosen(rows: Int[np.ndarray, " b"]) -> list[Float[np.ndarray, "b M"]]:
        return [each[:, known[rows]].mean(axis=0, dtype=np.float64) for each in found]

    user = examples.user[known]
    return _compare(list(values), measures, chosen, user, item[known], slices=slices, resamples=resamples, rng=rng)


def _compare(
    systems: Sequence[str],
    measures: Sequence[tuple[str, int]],
    values: Callable[[Int[np.ndarray, " b"]], list[Float[np.ndarray, "b M"]]],
    user: Int[np.ndarray, " B"],
    item: Int[np.ndarray, " B"],
    *,
    slices: Mapping[str, Bool[np.ndarray, " B"]],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the means of each system's values of measures on each slice, and its gains over all earlier systems."""
    pairs = [(later, first) for later in range(len(systems)) for first in range(later)]
    masks = np.stack(list(slices.values()), axis=1)

    def columns(rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b F"]:
        inside, found = masks[rows].astype(np.float64), values(rows)
        on_slices = [(inside[:, :, None] * each[:, None, :]).reshape(len(rows), -1) for each in found]
        return np.concatenate([inside, *on_slices, *(found[later] - found[first] for later, first in pairs)], axis=1)

    paired = len(pairs) * len(measures)
    sums = resample_users(user, columns, paired, resamples=resamples, rng=rng)
    margins = INTERVAL_ERRORS * two_way_errors(user, item, columns, paired)
    shape = (len(systems), len(slices), len(measures))
    found = _means_with_intervals(sums.total[: -paired or None], sums.drawn[:, : -paired or None], shape)
    rows = []
    for at in itertools.product(*map(range, shape)):
        name, k = measures[at[2]]
        row = {"system": systems[at[0]], "slice": list(slices)[at[1]], "name": name, "k": k}
        value, low, high = (float(part[at]) for part in found)
        rows.append(row | {"value": value, "low": low, "high": high, "num_examples": int(sums.total[at[1]])})
    comparisons = []
    for column, ((later, first), (name, k)) in enumerate(itertools.product(pairs, measures), -paired):
        gain, drawn, swapped = (part[..., column] / len(user) for part in sums)
        low, high = np.percentile(drawn, INTERVAL).tolist()
        row = {"system": systems[later], "baseline": systems[first], "name": name, "k": k}
        row |= {"difference": float(gain), "low": low, "high": high}
        margin = float(margins[column])
        row |= {"low_with_items": float(gain) - margin, "high_with_items": float(gain) + margin}
        comparisons.append(row | {"p_value": (1 + int((np.abs(swapped) >= abs(gain) - 1e-12).sum())) / (1 + resamples)})
    return rows, comparisons


def _means_with_intervals(
    total: Float[np.ndarray, " F"], drawn: Float[np.ndarray, "R F"], shape: tuple[int, int, int]
) -> tuple[Float[np.ndarray, "Y S M"], Float[np.ndarray, "Y S M"], Float[np.ndarray, "Y S M"]]:
    """Return means by system, slice and measure, and the bounds of their intervals; NaN for a slice without examples."""
    num_slices = shape[1]
    counts, drawn_counts = total[:num_slices], drawn[:, :num_slices]
    sums = total[num_slices:].reshape(shape)
    means = drawn[:, num_slices:].reshape(-1, *shape) / np.where(drawn_counts > 0, drawn_counts, np.nan)[:, None, :, None]
    means[:, :, counts == 0] = 0  # resamples without an example of the slice are ignored, but at least one must remain
    low, high = np.nanpercentile(means, INTERVAL, axis=0)
    known = np.where(counts > 0, 1.0, np.nan)[:, None]
    return sums / np.maximum(counts, 1)[:, None] * known, low * known, high * known


def evaluate_exposure(lists: SystemLists, items: IdIndex, ks: Sequence[int]) -> list[dict[str, Any]]:
    """Return coverage@k (share of the catalogue in any top k) and the invalid rate (share of listed ids that are no item).

    Neither is a mean over examples, so their intervals are NaN.
    """
    real = items.find(lists.exposure["item_id"]) >= 0
    best, counts = lists.exposure["best"].to_numpy(), lists.exposure["count"].to_numpy()
    values = [("coverage", k, float(((best <= k) & real).sum() / max(len(items), 1))) for k in ks]
    values.append(("invalid_rate", max(ks), float(counts[~real].sum() / max(counts.sum(), 1))))
    nothing = {"low": float("nan"), "high": float("nan"), "num_examples": len(lists.ranks), "slice": "all"}
    return [nothing | {"name": name, "k": k, "value": value} for name, k, value in values]


def evaluate_split(
    systems: Mapping[str, Callable[[], Iterable[pa.RecordBatch | pa.Table]]],
    examples: Examples,
    items: IdIndex,
    split: str,
    *,
    ks: Sequence[int],
    resamples: int,
    rng: np.random.Generator,
    interests: CarriedInterests | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Evaluate all systems of a run on one split: rows of the `metrics` table, and the comparisons.

    Args:
        systems: name -> opens the system's recommendations; in the order of comparison, baselines first.
        interests: the interests of items; with them see also `evaluate_interests`.
    """
    lists = {system: rank_system(batches(), examples, f"{system}, {split}", interests, ks) for system, batches in systems.items()}
    ranks = {system: found.ranks for system, found in lists.items()}
    item = examples.targets.dictionary_encode().indices.to_numpy()
    rows, comparisons = evaluate_ranks(ranks, examples.user, item, examples.slices, ks, resamples=resamples, rng=rng)
    if interests is not None and has_interest(examples.targets, interests).any():
        values = {system: found.interest for system, found in lists.items() if found.interest is not None}
        more = evaluate_interests(values, examples, interests, ks, resamples=resamples, rng=rng.spawn(1)[0])
        rows, comparisons = rows + more[0], comparisons + more[1]
    for system, found in lists.items():
        rows += [{"system": system} | row for row in evaluate_exposure(found, items, ks)]
    rows.sort(key=lambda row: list(systems).index(row["system"]))
    return [{"split": split} | row for row in rows], [{"split": split} | row for row in comparisons]


def target_slices(
    frequency: Int[np.ndarray, " N"],
    targets: Int[np.ndarray, " B"],
    repeated: Bool[np.ndarray, " B"],
    last_frequency: Int[np.ndarray, " B"],
    different_day: pa.BooleanArray,
) -> dict[str, Bool[np.ndarray, " B"]]:
    """Return the slices: all; by target head, tail, cold (never seen in training), repeat (in its own history); and three more.

    `rare_last`: the history's newest item was seen at most `RARE_TIMES` times in training, so counts are weak.
    `others`: all examples except those of the `TOP_TARGETS` most frequent targets, one of which alone can change a metric.
    `different_day`: the target came on another day than the history's newest item, so hardly in the same order; examples
    without both times are left out, and without any known times the slice does not exist.

    Args:
        frequency: training occurrences of each item.
        targets: item index of each target.
        repeated: whether the target is in its own history.
        last_frequency: training occurrences of the newest item of each history.
        different_day: whether target and newest item came on different days in UTC, null where a time is unknown.
    """
    seen = np.sort(frequency[frequency > 0])[::-1]
    threshold = seen[max(int(np.ceil(HEAD_RATE * len(seen))) - 1, 0)] if len(seen) else 1
    occurrences = frequency[targets]
    slices = {
        "all": np.ones(len(targets), bool),
        "head": occurrences >= threshold,
        "tail": (occurrences > 0) & (occurrences < threshold),
        "cold": occurrences == 0,
        "repeat": repeated,
        "rare_last": last_frequency <= RARE_TIMES,
        "others": ~np.isin(targets, np.argsort(-np.bincount(targets), kind="stable")[:TOP_TARGETS]),
    }
    if different_day.null_count < len(different_day):
        slices["different_day"] = pc.fill_null(different_day, False).to_numpy(zero_copy_only=False)
    return slices


def _merge_exposure(exposure: pa.Table, lists: pa.ListArray) -> pa.Table:
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    places = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    more = pa.table({"item_id": lists.flatten(), "best": places, "count": np.ones(len(places), np.int64)})
    merged = pa.concat_tables([exposure, more]).group_by("item_id").aggregate([("best", "min"), ("count", "sum")])
    return merged.rename_columns({"best_min": "best", "count_sum": "count"})


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
