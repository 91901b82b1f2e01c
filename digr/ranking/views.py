"""All that candidates are proposed and judged by, as arrays on disk that are mapped into memory and not read.

A view is made for one period: what was known before the rows that the ranker learns from, or all of training. A request
touches the rows of its history's items and of its candidates, so what it reads does not grow with the catalogue.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from digr.ranking.groups import InterestGroups, Lifts
from digr.ranking.neighbours import Neighbours

Period = Literal["all", "before"]
"""Statistics of all training rows, or of what was before the rows that the ranker learns from."""
PERIODS: tuple[Period, ...] = ("all", "before")
COUNTED = ("transitions", "next", "cooccurrence")
"""Sources that are counted in training."""
Content = Literal["text", "image"]
"""What of an item itself has a vector."""
CONTENTS: tuple[Content, ...] = ("text", "image")
MOST_POPULAR = 30


class Statistics(NamedTuple):
    """What training rows of one period say of N items."""

    neighbours: Mapping[str, Neighbours]
    """For each of `COUNTED`."""
    frequency: Int[np.ndarray, " N"]
    """Training interactions."""
    recent: Float[np.ndarray, " N"]
    """The same, older ones less."""
    most_frequent: Int[np.ndarray, ""]
    """The largest frequency, at least 1."""
    popular: Int[np.ndarray, " p"]
    """The `MOST_POPULAR` items by recent interactions."""


class ContentVectors(NamedTuple):
    """What items read or look like."""

    vectors: Float[np.ndarray, "N D"]
    """Centred unit vectors; zero rows where an item has no image."""
    neighbours: Neighbours
    """Items with the nearest vectors."""


class Family(NamedTuple):
    """What one kind of phrases about items says: interests, or what is put in their place to be compared with them."""

    vectors: Float[np.ndarray, "N D"]
    """Centred unit means of an item's phrases; zero rows where it has none."""
    neighbours: Neighbours
    """Items with the nearest vectors."""
    groups: tuple[InterestGroups, ...]
    """One for each grain."""
    lifts: tuple[Lifts, ...]
    """Of the view's period."""
    steps: Neighbours
    """Items that come after each group of the finest grain, in the view's period."""


def period_statistics(frequency: Int[np.ndarray, " N"], recent: Float[np.ndarray, " N"]) -> dict[str, np.ndarray]:
    """Return the arrays of `Statistics` but for the counted sources, as they are saved."""
    popular = np.argsort(-recent, kind="stable")[:MOST_POPULAR]
    return {
        "frequency": frequency,
        "recent": recent,
        "most_frequent": np.array(max(1, int(frequency.max(initial=0)))),
        "popular": popular,
    }


class View(NamedTuple):
    """Everything that is known of N items in one period."""

    statistics: Statistics
    contents: Mapping[Content, ContentVectors]
    """Texts, and images where there are any."""
    families: Mapping[str, Family]

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.statistics.frequency)


def save_arrays(folder: Path, arrays: Any, name: str = "") -> None:
    """Write the arrays of nested tuples and mappings, a file each, named by the path to it."""
    if isinstance(arrays, np.ndarray):
        np.save(folder / f"{name}.npy", arrays, allow_pickle=False)
        return
    items = arrays._asdict() if hasattr(arrays, "_asdict") else arrays if isinstance(arrays, Mapping) else dict(enumerate(arrays))
    for key, value in items.items():
        save_arrays(folder, value, f"{name}.{key}" if name else str(key))


def load_array(folder: Path, name: str) -> np.ndarray:
    """Map an array that `save_arrays` wrote; a plain one, since NumPy's own class for mapped files is slow at small slices."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def load_arrays(kind: Any, folder: Path, name: str) -> Any:
    """Map the arrays of a tuple that `save_arrays` wrote under a name."""
    return kind(*(load_array(folder, f"{name}.{field}") for field in kind._fields))


def load_view(folder: Path, period: Period, families: tuple[str, ...], grains: int) -> View:
    """Map the arrays of a period; what a request does not touch is never read."""
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
