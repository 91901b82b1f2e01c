"""Write the arrays of `ranking_index`, each step in its own worker, and the neighbours of each part's items."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.partitions import Part, read_part
from digr.ranking import building
from digr.ranking.building import FamilyFiles
from digr.ranking.counting import STEPS
from digr.ranking.groups import InterestGroups, fit_lifts, interest_steps
from digr.ranking.neighbours import to_lists
from digr.ranking.steering import carriers_of
from digr.ranking.views import COUNTED, PERIODS, Content, Period, load_array, load_arrays, period_statistics, save_arrays

INDEX, SEARCH = "ranking_index", "search"


@contextmanager
def _added_files(store: Store, name: str = INDEX) -> Iterator[Path]:
    """Yield an empty folder; its files are added to the artifact when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        artifacts.put_files(store, name, Path(folder))


def write_family(store: Store, files: FamilyFiles, groups: list[np.ndarray], firsts: np.ndarray, name: str) -> None:
    """Write the vectors and groups of a family with its own phrases."""
    with _added_files(store) as folder:
        phrases, num_items = building.read_item_phrases(files, firsts), int(firsts[-1])
        building.write_family_vectors(files, phrases, num_items, folder / f"{name}.vectors.npy")
        found = building.family_groups(phrases, groups, num_items)
        save_arrays(folder, found, f"{name}.groups")
        save_arrays(folder, carriers_of(found[0]), f"{name}.carriers")
        save_arrays(folder, building.unit(building.group_means(files, groups[0])), f"{name}.centroids")


def write_content(store: Store, content: Content, num_items: int) -> None:
    """Write the vectors of all items' texts or images."""
    with _added_files(store) as folder:
        building.write_content_vectors(store, content, num_items, folder / f"{content}.vectors.npy")


def write_search(store: Store, work: str, name: str, seed: int) -> None:
    """Write the search index over a source's vectors."""
    import faiss

    with artifacts.fetch_files(store.uri(INDEX), f"{name}.vectors") as index, _added_files(Store(work), SEARCH) as folder:
        search = building.build_search(np.load(index / f"{name}.vectors.npy", mmap_mode="r"), seed)
        faiss.write_index(search, str(folder / f"{name}.faiss"))


class Nearest:
    """Write parts of `item_neighbours`: counted sources, and nearest items by contents and by each family's phrases."""

    def __init__(self, config: Config, store: Store, work: str, firsts: np.ndarray, sources: tuple[str, ...]) -> None:
        import faiss

        faiss.omp_set_num_threads(config.cluster.encode_threads)
        self.store, self.counted, self.firsts, self.most = store, f"{work}/counted", firsts, config.ranking.neighbours
        self.vectors, self.search = {}, {}
        for name in sources:  # mapped into memory, so that the processes of a node share them
            with artifacts.fetch_files(store.uri(INDEX), f"{name}.vectors") as folder:
                self.vectors[name] = np.load(folder / f"{name}.vectors.npy", mmap_mode="r")
            with artifacts.fetch_files(Store(work).uri(SEARCH), f"{name}.faiss") as folder:
                self.search[name] = building.map_search(folder / f"{name}.faiss")

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Search the neighbours of a part's items."""
        item_ids = read_part(self.store, "items", part, ["item_id"])["item_id"].combine_chunks()
        first, end = self.firsts[part.number : part.number + 2].tolist()
        for name, index in self.search.items():
            found = building.nearest(index, self.vectors[name], first, end, self.most)
            yield "item_neighbours", building.source_rows(item_ids, name, to_lists(found))
        uri = f"{self.counted}/{artifacts.part_name(part.number)}"
        counted = artifacts.open_parts(uri).to_table() if artifacts.list_parts(uri) else None
        for period in PERIODS:
            for source in (*COUNTED, STEPS):
                name = building.source_name(source, period)
                lists = counted.filter(pc.equal(counted["source"], name))["neighbours"].combine_chunks() if counted else None
                empty = pa.array([[]] * (end - first), to_lists(building.no_neighbours(0)).type)
                yield "item_neighbours", building.source_rows(item_ids, name, empty if lists is None else lists)


def write_source(store: Store, source: str, name: str) -> None:
    """Write the lists of a source as arrays under a name."""
    with _added_files(store) as folder:
        save_arrays(folder, building.read_source(store, source), name)


def write_counts(store: Store, counts: Any) -> None:
    """Write the counts of each item."""
    with _added_files(store) as folder:
        for period, each in counts.items():
            save_arrays(folder, period_statistics(each.frequency, each.recent), period)


def write_shuffled(store: Store, name: str, grains: int) -> None:
    """Write the family in which every item has the interests of a random other item; its name contains the seed."""
    with artifacts.fetch_files(store.uri(INDEX), "interests.") as index, _added_files(store) as folder:
        save_arrays(folder, building.shuffle_family(index, "interests", grains, int(name.rsplit("_", 1)[1])), name)


def write_lifts(store: Store, name: str, period: Period, grains: int) -> None:
    """Write the lifts of steps between a family's interests at each grain, and the items after each interest of the finest."""
    with (
        artifacts.fetch_files(store.uri(INDEX), f"{name}.groups.") as index,
        artifacts.fetch_files(store.uri(INDEX), f"{period}.recent") as counted,
        _added_files(store) as folder,
    ):
        followed = building.read_source(store, building.source_name(STEPS, period))
        for grain in range(grains):
            groups = load_arrays(InterestGroups, index, f"{name}.groups.{grain}")
            lifts = fit_lifts(groups, followed)
            save_arrays(folder, lifts, f"{name}.{period}.lifts.{grain}")
            if not grain:
                steps = interest_steps(groups, lifts, load_array(counted, f"{period}.recent"))
                save_arrays(folder, steps, f"{name}.{period}.steps")
