"""The data by which candidates are proposed and ranked, as arrays on disk that are mapped into memory.

A view has the data of one period: those before the rows from which the ranker learns, or all of training. A request reads
only the rows of its history's items and of its candidates, so its cost does not grow with the catalogue.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from digr.ranking.groups import InterestGroups, Lifts
from digr.ranking.neighbours import Neighbours

Period = Literal["all", "before"]
"""Period of the statistics: all training rows, or those before the rows from which the ranker learns."""
PERIODS: tuple[Period, ...] = ("all", "before")
COUNTED = ("transitions", "next", "cooccurrence")
"""Sources that are counted in training."""
Content = Literal["text", "image"]
"""Contents of an item that have a vector."""
CONTENTS: tuple[Content, ...] = ("text", "image")
MOST_POPULAR = 30


class Statistics(NamedTuple):
    """Statistics of N items from the training rows of one period."""

    neighbours: Mapping[str, Neighbours]
    """Lists of each source of `COUNTED`."""
    frequency: Int[np.ndarray, " N"]
    """Training interactions."""
    recent: Float[np.ndarray, " N"]
    """Interactions of each item, with smaller weights for older ones."""
    most_frequent: Int[np.ndarray, ""]
    """The largest frequency, at least 1."""
    popular: Int[np.ndarray, " p"]
    """The `MOST_POPULAR` items by recent interactions."""


class ContentVectors(NamedTuple):
    """Vectors of items' texts or images."""

    vectors: Float[np.ndarray, "N D"]
    """Centred unit vectors; zero rows where an item has no image."""
    neighbours: Neighbours
    """Items with the nearest vectors."""


class Family(NamedTuple):
    """Data of one kind of phrases: interests, or the phrases of a control to which interests are compared."""

    vectors: Float[np.ndarray, "N D"]
    """Centred unit mean vectors of each item's phrases; zero rows for items without phrases."""
    neighbours: Neighbours
    """Items with the nearest vectors."""
    groups: tuple[InterestGroups, ...]
    """Groups at each grain."""
    lifts: tuple[Lifts, ...]
    """Lifts at each grain, in the view's period."""
    steps: Neighbours
    """Items after each group of the finest grain, in the view's period."""


def period_statistics(frequency: Int[np.ndarray, " N"], recent: Float[np.ndarray, " N"]) -> dict[str, np.ndarray]:
    """Return the arrays of `Statistics` without the counted sources, as they are saved."""
    popular = np.argsort(-recent, kind="stable")[:MOST_POPULAR]
    return {
        "frequency": frequency,
        "recent": recent,
        "most_frequent": np.array(max(1, int(frequency.max(initial=0)))),
        "popular": popular,
    }


class View(NamedTuple):
    """All data of N items in one period."""

    statistics: Statistics
    contents: Mapping[Content, ContentVectors]
    """Texts, and images where there are any."""
    families: Mapping[str, Family]

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.statistics.frequency)


def save_arrays(folder: Path, arrays: Any, name: str = "") -> None:
    """Write the arrays of nested tuples and mappings, one file per array, named by its path."""
    if isinstance(arrays, np.ndarray):
        np.save(folder / f"{name}.npy", arrays, allow_pickle=False)
        return
    items = arrays._asdict() if hasattr(arrays, "_asdict") else arrays if isinstance(arrays, Mapping) else dict(enumerate(arrays))
    for key, value in items.items():
        save_arrays(folder, value, f"{name}.{key}" if name else str(key))


def load_array(folder: Path, name: str) -> np.ndarray:
    """Map an array that `save_arrays` wrote, as a plain array, because slices of NumPy's `memmap` are slow."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def load_arrays(kind: Any, folder: Path, name: str) -> Any:
    """Map the arrays of a tuple that `save_arrays` wrote under a name."""
    return kind(*(load_array(folder, f"{name}.{field}") for field in kind._fields))


def load_view(folder: Path, period: Period, families: tuple[str, ...], grains: int) -> View:
    """Map the arrays of a period; only the pages that requests use are read."""
    counted = {name: load_arrays(Neighbours, folder, f"{period}.{name}") for name in COUNTED}
    names = ("frequency", "recent", "most_frequent", "popular")
    statistics = Statistics(counted, *(load_array(folder, f"{period}.{name}") for name in names))
    found = {
        name: Family(
            load_array(folder, f"{name}.vectors"),
            load_arrays(Neighbours, folder, f"{name}.neighbours"),
            tuple(load_arrays(InterestGroups, folder, f"{name}.groups.{grain}") for grain in range(grains)),
            tuple(load_arrays(Lifts, folder, f"{name}.{period}.lifts.{grain}") for grain in range(grains)),
            load_arrays(Neighbours, folder, f"{name}.{period}.steps"),
        )
        for name in families
    }
    contents = {
        name: ContentVectors(load_array(folder, f"{name}.vectors"), load_arrays(Neighbours, folder, f"{name}.neighbours"))
        for name in CONTENTS
        if (folder / f"{name}.vectors.npy").is_file()
    }
    return View(statistics, contents, found)
