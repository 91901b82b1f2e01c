"""Count transitions in training with Ray: parts of users give pairs of items, which are sorted by the earlier item's part."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.ids import IdIndex, build_id_index
from digr.data.transitions import training_sequences
from digr.partitions import Part, parts_of, read_part
from digr.ranking import building
from digr.ranking.counting import count_pairs, counted_lists, merge_pairs, pairs_of_table, pairs_table
from digr.ranking.examples import FitRows, fit_rows, is_fit_row, recent_weights, row_numbers, without_last
from digr.ranking.neighbours import to_lists
from digr.ranking.views import PERIODS, Period
from jobs.runtime.datasets import map_tables, part_dataset, parts_in, start_task


class CountedRows(NamedTuple):
    """The training rows that are counted in each period."""

    chosen: FitRows
    """CountedRows that the ranker learns from."""
    first_number: int
    """First row of the tail, if the ranker learns from it."""
    num_rows: int
    """Number of train rows."""

    def end(self, period: Period) -> int:
        """Return the number of the first row after a period."""
        return self.num_rows if period == "all" else self.first_number


def counted_rows(config: Config, store: Store) -> CountedRows:
    """Return the training rows that are counted in each period."""
    facts = artifacts.require(store, "histories").facts
    num_rows = int(facts["split_rows"]["train"]) - int(facts.get("earlier_train_rows", 0))
    chosen = fit_rows(config)
    first = int(num_rows * (1 - config.ranking.tail_rate)) if chosen == "period" else num_rows
    return CountedRows(chosen, first, num_rows)


class Counts(NamedTuple):
    """Interactions of N items in one period."""

    frequency: np.ndarray
    recent: np.ndarray


def count_sources(config: Config, store: Store, work: str, firsts: np.ndarray) -> Any:
    """Count items and pairs in both periods, and write the lists of the counted sources; return a reference to the counts."""
    rows, users = counted_rows(config, store), part_dataset(parts_of(store, "user"))
    items = start_task(_index_items, store)
    half_life = max(1.0, config.ranking.half_life_rate * rows.num_rows)
    counted = map_tables(users, _count_items, store=store, items=items, rows=rows, half_life=half_life)
    counts = start_task(_add_counts, counted.to_arrow_refs(), int(firsts[-1]))
    folder = f"{work}/counted"
    pairs = map_tables(users, _count_pairs, store=store, items=items, rows=rows, firsts=firsts)
    # sorted, so that a part's pairs are in one block
    pairs = pairs.repartition(len(firsts) - 1).sort("part") if len(firsts) > 2 else pairs.repartition(1)
    write = partial(_write_counted, folder=folder, counts=counts, firsts=firsts, most=config.ranking.neighbours)
    map_tables(pairs, write).materialize()
    return counts


def _index_items(store: Store) -> IdIndex:
    return build_id_index(artifacts.read_table(store, "items", ["item_id"])["item_id"])


def _sequences(store: Store, part: Part, items: IdIndex, rows: CountedRows, period: Period) -> Iterator[Any]:
    """Stream the training sequences of a part's users within a period."""
    table = _train_rows(store, part)
    if period == "before" and rows.chosen == "period":
        table = table.filter(pa.array(~is_fit_row(table, rows.chosen, rows.first_number)))
    for found in training_sequences([table], partial(items.find_all, where="histories")):
        yield without_last(found) if period == "before" and rows.chosen == "last_step" else found


def _train_rows(store: Store, part: Part) -> pa.Table:
    table = read_part(store, "histories", part, ["example_id", "user_id", "split", "history", "target"])
    return table.filter(pc.equal(table["split"], "train"))


def _count_items(parts: pa.Table, store: Store, items: Any, rows: CountedRows, half_life: float) -> pa.Table:
    """Return interactions and recent interactions of the items that occur in some parts of users, by period."""
    index = ray.get(items)
    found = []
    for part in parts_in(parts):
        train = _train_rows(store, part)
        for period in PERIODS:
            taken = [sequences.item for sequences in _sequences(store, part, index, rows, period)]
            item, frequency = np.unique(np.concatenate([np.zeros(0, np.int64), *taken]), return_counts=True)
            recent = frequency.astype(np.float64)
            if rows.chosen == "period":
                number, end = row_numbers(train["example_id"]), rows.end(period)
                inside = number < end
                target = index.find_all(train["target"].filter(pa.array(inside)), "histories")
                recent = recent_weights(number[inside], np.searchsorted(item, target), end, half_life, len(item))
            columns = {"item": item, "frequency": frequency, "recent": recent}
            found.append(pa.table({"period": pa.array([period] * len(item), pa.string()), **columns}))
    return pa.concat_tables(found)


def _add_counts(tables: list[Any], num_items: int) -> dict[Period, Counts]:
    found = {period: Counts(np.zeros(num_items, np.int64), np.zeros(num_items)) for period in PERIODS}
    for reference in tables:
        table = ray.get(reference)
        for period, counts in found.items():
            rows = table.filter(pc.equal(table["period"], period))
            item = rows["item"].to_numpy()
            np.add.at(counts.frequency, item, rows["frequency"].to_numpy())
            np.add.at(counts.recent, item, rows["recent"].to_numpy())
    return found


def _count_pairs(parts: pa.Table, store: Store, items: Any, rows: CountedRows, firsts: np.ndarray) -> pa.Table:
    index = ray.get(items)
    found = []
    for part in parts_in(parts):
        for period in PERIODS:
            counted = [count_pairs(each, len(index)) for each in _sequences(store, part, index, rows, period)]
            if counted:
                pairs = merge_pairs(counted, len(index))
                found.append(pairs_table(pairs, period, np.searchsorted(firsts, pairs.before, side="right") - 1))
    return pa.concat_tables(found) if found else pairs_table(merge_pairs([], len(index)), "all", np.zeros(0, np.int64))


def _write_counted(pairs: pa.Table, folder: str, counts: Any, firsts: np.ndarray, most: int) -> pa.Table:
    """Write the lists of whole parts of items, one file each, a row for each source."""
    frequency, num_items = {period: each.frequency for period, each in ray.get(counts).items()}, int(firsts[-1])
    part = np.asarray(pairs["part"])
    for number in np.unique(part).tolist() if len(firsts) > 2 else [0]:
        first, end = firsts[number : number + 2].tolist()
        here, sources, lists = pairs.filter(pa.array(part == number)), [], []
        for period in PERIODS:
            merged = merge_pairs([pairs_of_table(here.filter(pc.equal(here["period"], period)))], num_items)
            for name, found in counted_lists(merged, first, end, frequency[period], most).items():
                sources += [building.source_name(name, period)] * (end - first)
                lists.append(to_lists(found))
        table = pa.table({"source": pa.array(sources, pa.string()), "neighbours": pa.concat_arrays(lists)})
        with artifacts.open_part(f"{folder}/{artifacts.part_name(number)}", table.schema) as writer:
            writer.write_table(table)
    return pairs.slice(0, 0).select(["part"])
