"""A small catalogue with everything a view has, drawn at random."""

from pathlib import Path

import numpy as np

from digr.ranking.features import pool_lists
from digr.ranking.groups import fit_lifts, group_items, interest_steps
from digr.ranking.neighbours import HistoryItems, Neighbours, heaviest
from digr.ranking.sources import Candidates, propose
from digr.ranking.views import (
    CONTENTS,
    COUNTED,
    PERIODS,
    ContentVectors,
    Family,
    Statistics,
    View,
    period_statistics,
    save_arrays,
)

NUM_ITEMS, NUM_GROUPS, GRAINS = 12, (5, 3), 2


def random_lists(rng: np.random.Generator, most: int = 4, num_items: int = NUM_ITEMS) -> Neighbours:
    """Draw lists of neighbours."""
    row, item = np.repeat(np.arange(num_items), 6), rng.integers(0, num_items, num_items * 6)
    _, first = np.unique(np.stack([row, item]), axis=1, return_index=True)
    return heaviest(row[first], item[first], rng.random(len(first)).astype(np.float32) + 0.01, num_items, most)


def random_family(rng: np.random.Generator, num_items: int = NUM_ITEMS) -> Family:
    """Draw a family of phrases; item 3 has none."""
    vectors = rng.normal(size=(num_items, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0
    owner = np.repeat(np.arange(num_items), 2)
    kept = owner != 3
    groups = tuple(
        group_items(owner[kept], rng.integers(0, num, len(owner))[kept], rng.random(len(owner))[kept], num_items, num)
        for num in NUM_GROUPS
    )
    steps = random_lists(rng, num_items=num_items)
    lifts = tuple(fit_lifts(each, steps) for each in groups)
    followers = interest_steps(groups[0], lifts[0], rng.random(num_items))
    return Family(vectors.astype(np.float16), random_lists(rng, num_items=num_items), groups, lifts, followers)


def random_content(rng: np.random.Generator, num_items: int = NUM_ITEMS) -> ContentVectors:
    """Draw vectors of unit length."""
    vectors = rng.normal(size=(num_items, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ContentVectors(vectors.astype(np.float16), random_lists(rng, num_items=num_items))


def random_view(
    seed: int, families: tuple[str, ...] = ("interests",), num_items: int = NUM_ITEMS, *, images: bool = False
) -> View:
    """Draw a view."""
    rng = np.random.default_rng(seed)
    contents = {name: random_content(rng, num_items) for name in CONTENTS if name == "text" or images}
    frequency = rng.integers(0, 9, num_items)
    counted = {name: random_lists(rng, num_items=num_items) for name in COUNTED}
    statistics = Statistics(counted, **period_statistics(frequency, frequency * rng.random(num_items)))
    found = {name: random_family(rng, num_items) for name in families}
    return View(statistics, contents, found)


def save_view(view: View, folder: Path) -> None:
    """Write a view as `jobs.build_neighbours` does, the same for both periods."""
    save_arrays(folder, view.contents)
    for name, family in view.families.items():
        arrays = {"vectors": family.vectors, "neighbours": family.neighbours, "groups": family.groups}
        of_periods = {period: {"lifts": family.lifts, "steps": family.steps} for period in PERIODS}
        save_arrays(folder, arrays | of_periods, name)
    for period in PERIODS:
        save_arrays(folder, period_statistics(view.statistics.frequency, view.statistics.recent), period)
        save_arrays(folder, view.statistics.neighbours, period)


def candidates_after(view: View, histories: HistoryItems, generated: Neighbours | None = None) -> Candidates:
    """Return what all sources propose."""
    return propose(view, histories, pool_lists(view, histories), generated)


def some_histories() -> HistoryItems:
    """Return three histories, one of them empty and one with a repeat."""
    return HistoryItems(np.array([4, 0, 7, 7, 2]), np.array([0, 3, 3, 5]))
