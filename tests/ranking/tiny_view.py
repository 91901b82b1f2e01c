"""A small catalogue with everything a view has, drawn at random."""

import numpy as np

from digr.ranking.groups import fit_lifts, group_items
from digr.ranking.neighbours import HistoryItems, Neighbours, heaviest
from digr.ranking.views import COUNTED, Family, Statistics, View, period_statistics

NUM_ITEMS, NUM_GROUPS, GRAINS = 12, (5, 3), 2


def random_lists(rng: np.random.Generator, most: int = 4) -> Neighbours:
    """Draw lists of neighbours."""
    row, item = np.repeat(np.arange(NUM_ITEMS), 6), rng.integers(0, NUM_ITEMS, NUM_ITEMS * 6)
    _, first = np.unique(np.stack([row, item]), axis=1, return_index=True)
    return heaviest(row[first], item[first], rng.random(len(first)).astype(np.float32) + 0.01, NUM_ITEMS, most)


def random_family(rng: np.random.Generator) -> Family:
    """Draw a family of phrases."""
    vectors = rng.normal(size=(NUM_ITEMS, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0
    owner = np.repeat(np.arange(NUM_ITEMS), 2)
    kept = owner != 3
    groups = tuple(
        group_items(owner[kept], rng.integers(0, num, len(owner))[kept], rng.random(len(owner))[kept], NUM_ITEMS, num)
        for num in NUM_GROUPS
    )
    steps = random_lists(rng)
    return Family(vectors.astype(np.float16), random_lists(rng), groups, tuple(fit_lifts(each, steps) for each in groups))


def random_view(seed: int, families: tuple[str, ...] = ("interests",)) -> View:
    """Draw a view."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(NUM_ITEMS, 6))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    frequency = rng.integers(0, 9, NUM_ITEMS)
    counted = {name: random_lists(rng) for name in COUNTED}
    statistics = Statistics(counted, **period_statistics(frequency, frequency * rng.random(NUM_ITEMS)))
    return View(statistics, text.astype(np.float16), random_lists(rng), {name: random_family(rng) for name in families})


def some_histories() -> HistoryItems:
    """Return three histories, one of them empty and one with a repeat."""
    return HistoryItems(np.array([4, 0, 7, 7, 2]), np.array([0, 3, 3, 5]))
