"""The arrays of `ranking_index`, each step in one worker, and the neighbours of a part's items."""

import tempfile
from collections.abc import Iterator, Sequence
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
from digr.ranking.neighbours import to_lists
from digr.ranking.steering import carriers_of
from digr.ranking.views import COUNTED, PERIODS, period_statistics, save_arrays

INDEX, SEARCH = "ranking_index", "search"


def write_family(store: Store, files: FamilyFiles, groups: list[np.ndarray], firsts: np.ndarray, name: str) -> None:
    """Write the vectors and groups of a family that has phrases of its own."""
    with tempfile.TemporaryDirectory() as folder:
        phrases, num_items = building.read_item_phrases(files, firsts), int(firsts[-1])
        building.write_family_vectors(files, phrases, num_items, Path(folder) / f"{name}.vectors.npy")
        found = building.family_groups(phrases, groups, num_items)
        save_arrays(Path(folder), found, f"{name}.groups")
        save_arrays(Path(folder), carriers_of(found[0]), f"{name}.carriers")
        save_arrays(Path(folder), building.group_centroids(files, groups[0]), f"{name}.centroids")
        artifacts.put_files(store, INDEX, Path(folder))


def write_text(store: Store, num_items: int) -> None:
    """Write the vectors of all items' texts."""
    with tempfile.TemporaryDirectory() as folder:
        building.write_text_vectors(store, num_items, Path(folder) / "text.vectors.npy")
        artifacts.put_files(store, INDEX, Path(folder))


def write_search(store: Store, work: str, name: str, seed: int) -> None:
    """Write what the neighbours by a source's vectors are searched with."""
    import faiss

    with artifacts.fetch_files(store.uri(INDEX)) as folder, tempfile.TemporaryDirectory() as here:
        index = building.build_search(np.load(folder / f"{name}.vectors.npy", mmap_mode="r"), seed)
        faiss.write_index(index, f"{here}/{name}.faiss")
        artifacts.put_files(Store(work), SEARCH, Path(here))


class Nearest:
    """Write parts of `item_neighbours`: what was counted, and the items nearest in text and in the phrases of each family."""

    def __init__(self, config: Config, store: Store, work: str, firsts: np.ndarray, sources: tuple[str, ...]) -> None:
        import faiss

        faiss.omp_set_num_threads(config.cluster.encode_threads)
        self.store, self.counted, self.firsts, self.most = store, f"{work}/counted", firsts, config.ranking.neighbours
        with artifacts.fetch_files(store.uri(INDEX)) as folder:
            self.vectors = {name: np.load(folder / f"{name}.vectors.npy", mmap_mode="r") for name in sources}
        with artifacts.fetch_files(Store(work).uri(SEARCH)) as folder:  # mapped, so that the processes of a node share it
            self.search = {name: faiss.read_index(str(folder / f"{name}.faiss"), faiss.IO_FLAG_MMAP) for name in sources}

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


def finish_index(store: Store, counts: Any, sources: Sequence[str], families: Sequence[str], grains: int) -> None:
    """Write the lists of `item_neighbours`, the counts, and what follows from both; see `building.write_lists`."""
    with tempfile.TemporaryDirectory() as folder, artifacts.fetch_files(store.uri(INDEX)) as there:
        for file in there.iterdir():
            (Path(folder) / file.name).symlink_to(file.resolve())
        building.write_lists(store, Path(folder), sources, families, grains)
        for period, each in counts.items():
            save_arrays(Path(folder), period_statistics(each.frequency, each.recent), period)
        for file in Path(folder).iterdir():
            if file.is_symlink():
                file.unlink()
        artifacts.put_files(store, INDEX, Path(folder))
