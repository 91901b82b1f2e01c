"""Make the arrays of a view from tables and earlier arrays; the jobs decide where each function runs.

An item's place is its row in `items`, which is sorted by item_id, so it is the same in every table about items.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float32, Int
from scipy.sparse import csr_matrix

from digr import artifacts
from digr.artifacts import Store
from digr.data.sequences import ranges
from digr.partitions import part_uri, parts_of
from digr.ranking.groups import InterestGroups, group_items, permute_items
from digr.ranking.neighbours import Neighbours, from_lists, join_lists
from digr.ranking.views import Content, Period, load_arrays

PART_PHRASES = 65_536
"""Phrases per file; one worker encodes a file."""
EXACT_ITEMS = 100_000
"""Catalogues up to this size are searched exactly; in larger ones, only the cells nearest to an item are searched."""
PROBED_CELLS, CELL_SAMPLES = 16, 64
VECTOR = np.float16
"""Vectors are stored in half precision, with an error of about 1e-3 in cosines."""
MERGED_ROWS = 1_000_000
"""Least number of phrases of items that are counted at once."""
BLOCK_ITEMS = 65_536
"""Items whose vectors are in memory at once."""


class FamilyFiles(NamedTuple):
    """Addresses of the intermediate files of a family's phrases."""

    folder: str

    @property
    def rows(self) -> str:
        """Phrases of items, with the parts of `items`."""
        return f"{self.folder}/rows"

    @property
    def phrases(self) -> str:
        """Distinct phrases with their numbers of items, `PART_PHRASES` per file."""
        return f"{self.folder}/phrases"

    @property
    def vectors(self) -> str:
        """Vectors of the distinct phrases, in the same files."""
        return f"{self.folder}/vectors"


def part_firsts(store: Store) -> Int[np.ndarray, " K1"]:
    """Return the place of the first item of each part, and the number of items."""
    sizes = [artifacts.open_parts(part_uri(store, "items", part)).count_rows() for part in parts_of(store, "item")]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def write_phrases(files: FamilyFiles, known: pa.Table | None = None) -> int:
    """Write the distinct phrases of all items, most frequent first; return the number of files.

    Args:
        known: rows of an earlier run's `canonical_interests`; their phrases are written even if no item has them any more.
    """
    kind = pa.schema([("interest", pa.string()), ("num_items", pa.int64())])
    counted, waiting = kind.empty_table(), list[pa.Table]()
    if known is not None:
        counted = pa.table({"interest": known["interest"], "num_items": np.zeros(len(known), np.int64)}, schema=kind)
    for batch in artifacts.open_parts(files.rows).to_batches(columns=["interest"]):
        waiting.append(pa.table({"interest": batch["interest"], "num_items": np.ones(len(batch), np.int64)}, schema=kind))
        if sum(map(len, waiting)) > max(MERGED_ROWS, len(counted)):  # so that phrases are merged only when their number doubles
            counted, waiting = _add_up([counted, *waiting]), []
    counted = _add_up([counted, *waiting]).sort_by([("num_items", "descending"), ("interest", "ascending")])
    parts = max(1, -(-len(counted) // PART_PHRASES))
    for number in range(parts):
        with artifacts.open_part(f"{files.phrases}/{artifacts.part_name(number)}", kind) as writer:
            writer.write_table(counted.slice(number * PART_PHRASES, PART_PHRASES))
    return parts


def _add_up(tables: list[pa.Table]) -> pa.Table:
    found = pa.concat_tables(tables).group_by("interest").aggregate([("num_items", "sum")])
    return found.rename_columns({"num_items_sum": "num_items"}).select(["interest", "num_items"])


def read_vectors(uri: str) -> Iterator[Float32[np.ndarray, "b D"]]:
    """Stream the vectors of a table."""
    for batch in artifacts.open_parts(uri).to_batches(columns=["vector"], batch_size=16_384):
        if len(batch):
            lists = batch["vector"]
            yield lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(lists), -1)


class ItemPhrases(NamedTuple):
    """The phrases of all items, grouped by item."""

    item: Int[np.ndarray, " P"]
    """Place in the catalogue."""
    number: Int[np.ndarray, " P"]
    """Index of the distinct phrase."""
    weight: Float32[np.ndarray, " P"]


def read_item_phrases(files: FamilyFiles, firsts: Int[np.ndarray, " K1"]) -> ItemPhrases:
    """Find the phrases of all items among the distinct ones, in one look-up, because each look-up hashes all of them."""
    parts = [artifacts.open_parts(f"{files.rows}/{artifacts.part_name(part)}").to_table() for part in range(len(firsts) - 1)]
    names = artifacts.open_parts(files.phrases).to_table()["interest"].combine_chunks()
    rows = pa.concat_tables(parts)
    item = rows["row"].to_numpy() + np.repeat(firsts[:-1], [len(part) for part in parts])
    number = pc.index_in(rows["interest"], value_set=names).to_numpy().astype(np.int64)
    return ItemPhrases(item, number, rows["weight"].to_numpy())


def family_groups(phrases: ItemPhrases, groups: Sequence[Int[np.ndarray, " P"]], num_items: int) -> tuple[InterestGroups, ...]:
    """Return the groups of all items at each grain.

    Args:
        groups: group of each distinct phrase, for each grain.
    """
    return tuple(
        group_items(phrases.item, group[phrases.number], phrases.weight, num_items, int(group.max(initial=-1)) + 1)
        for group in groups
    )


def write_family_vectors(files: FamilyFiles, phrases: ItemPhrases, num_items: int, path: Path) -> None:
    """Write the centred weighted mean of each item's phrase vectors as an array file."""
    blocks = read_vectors(files.vectors)
    first = next(blocks, np.zeros((0, 1), np.float32))
    num_phrases, dim = artifacts.open_parts(files.phrases).count_rows(), first.shape[1]
    scratch = path.with_suffix(".phrases")
    table = np.lib.format.open_memmap(scratch, "w+", VECTOR, (num_phrases, dim))
    before = 0
    for block in itertools.chain([first], blocks):
        table[before : before + len(block)] = block
        before += len(block)
    vectors = np.lib.format.open_memmap(path, "w+", VECTOR, (num_items, dim))
    for start in range(0, num_items, BLOCK_ITEMS):
        end = min(start + BLOCK_ITEMS, num_items)
        inside = slice(*np.searchsorted(phrases.item, [start, end]).tolist())
        distinct, column = np.unique(phrases.number[inside], return_inverse=True)
        share = csr_matrix((phrases.weight[inside], (phrases.item[inside] - start, column)), shape=(end - start, len(distinct)))
        vectors[start:end] = unit(share @ table[distinct].astype(np.float32))
    centre(vectors)
    vectors.flush()
    scratch.unlink()


def group_means(files: FamilyFiles, group: Int[np.ndarray, " P"]) -> Float32[np.ndarray, "K D"]:
    """Return the mean of the vectors of each group's phrases; phrases of group -1 are left out."""
    sums, before, num_groups = np.zeros((0, 1), np.float32), 0, int(group.max(initial=-1)) + 1
    for vectors in read_vectors(files.vectors):
        here = group[before : before + len(vectors)]
        rows = np.flatnonzero(here >= 0)
        member = csr_matrix((np.ones(len(rows), np.float32), (here[rows], rows)), shape=(num_groups, len(here)))
        sums = member @ vectors + (sums if before else 0)
        before += len(vectors)
    return sums / np.maximum(np.bincount(group[group >= 0], minlength=num_groups), 1).astype(np.float32)[:, None]


def contents_of(store: Store) -> list[Content]:
    """Return the contents of items that have vectors: always texts, and images if an encoder has read any."""
    images = pc.field("image_embedding").is_valid()
    has_images = len(artifacts.dataset_of(store, "item_embeddings").filter(images).head(1, columns=["item_id"]))
    return ["text", "image"] if has_images else ["text"]


def read_content_vectors(store: Store, content: Content) -> Iterator[Float32[np.ndarray, "B D"]]:
    """Stream the vectors of all items' texts or images; zeros for an item without an image.

    Raises:
        ValueError: the embeddings were built by an older version, without vectors of texts.
    """
    column = f"{content}_embedding"
    known = artifacts.dataset_of(store, "item_embeddings").filter(pc.field(column).is_valid())
    dim = len(known.head(1, columns=[column])[column].combine_chunks().flatten())
    for found in artifacts.iter_table(store, "item_embeddings", [column], BLOCK_ITEMS):
        lists = found[column]
        if content == "text" and lists.null_count:
            raise ValueError(
                f"{store.uri('item_embeddings')}: has no text_embedding, so an older version built it; run "
                f"`digr embed CONFIG --force` to rebuild it"
            )
        vectors = np.zeros((len(lists), dim), np.float32)
        vectors[np.asarray(lists.is_valid())] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, max(dim, 1))
        yield vectors


def write_content_vectors(store: Store, content: Content, num_items: int, path: Path) -> None:
    """Write the centred vectors of all items' texts or images as an array file."""
    vectors, before = None, 0
    for part in read_content_vectors(store, content):
        if vectors is None:
            vectors = np.lib.format.open_memmap(path, "w+", VECTOR, (num_items, part.shape[1]))
        vectors[before : before + len(part)] = part
        before += len(part)
    assert vectors is not None and before == num_items
    centre(vectors)
    vectors.flush()


def unit(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Scale rows to length 1; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def centre(vectors: Float[np.ndarray, "N D"]) -> None:
    """Subtract the mean from unit vectors and scale them to length 1 again, in place; zero rows stay zero."""
    blocks = [slice(first, first + BLOCK_ITEMS) for first in range(0, len(vectors), BLOCK_ITEMS)]
    total, count = np.zeros(vectors.shape[1]), 0
    for rows in blocks:
        block = vectors[rows].astype(np.float32)
        total += block.sum(0, dtype=np.float64)
        count += int(block.any(axis=1).sum())
    for rows in blocks:
        block = vectors[rows].astype(np.float32)
        has = block.any(axis=1, keepdims=True)
        vectors[rows] = unit((block - (total / max(count, 1)).astype(np.float32)) * has)


def build_search(vectors: Float[np.ndarray, "N D"], seed: int) -> faiss.Index:
    """Index vectors for `nearest`; a zero row is never found."""
    num, dim = vectors.shape
    if num <= EXACT_ITEMS:
        exact = faiss.IndexFlatIP(dim)
        exact.add(vectors.astype(np.float32))
        return exact
    cells = 1 << int(np.log2(4 * np.sqrt(num)))
    quantiser = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(quantiser, dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    rows = np.sort(np.random.default_rng(seed).choice(num, min(num, cells * CELL_SAMPLES), replace=False))
    index.train(vectors[rows].astype(np.float32))
    for first in range(0, num, 131_072):
        index.add(vectors[first : first + 131_072].astype(np.float32))
    index.nprobe = PROBED_CELLS
    return index


def map_search(path: Path) -> faiss.Index:
    """Map a file of `faiss.write_index` into memory, so that the processes of a machine share it."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    if isinstance(index, faiss.IndexIVF):
        lists = index.invlists and faiss.downcast_InvertedLists(index.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists):  # the file is mapped, so reading ahead would only cost time
            lists.prefetch_nthread = 0
    return index


def nearest(index: faiss.Index, vectors: Float[np.ndarray, "N D"], first: int, end: int, most: int) -> Neighbours:
    """Return the nearest items with positive cosine to each of items `first` up to `end`, without the item itself."""
    weight, item = index.search(vectors[first:end].astype(np.float32), most + 1)  # heaviest first
    kept = (item >= 0) & (item != np.arange(first, end)[:, None]) & (weight > 0)
    kept &= np.cumsum(kept, axis=1, dtype=np.int32) <= most
    start = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return Neighbours(start.astype(np.int64), item[kept].astype(np.int32), weight[kept])


def source_rows(item_ids: pa.Array, source: str, lists: pa.ListArray) -> pa.Table:
    """Return the lists of a source as rows of `item_neighbours`."""
    return pa.table({"item_id": item_ids, "source": pa.array([source] * len(item_ids), pa.string()), "neighbours": lists})


def source_name(source: str, period: Period) -> str:
    """Return the name in `item_neighbours` of a counted source of a period."""
    return source if period == "all" else f"{source}_{period}"


def read_source(store: Store, source: str) -> Neighbours:
    """Read the lists of all items of a source."""
    found = []
    for part in parts_of(store, "item"):
        rows = artifacts.open_parts(part_uri(store, "item_neighbours", part))
        lists = rows.to_table(columns=["neighbours"], filter=pc.field("source") == source)["neighbours"]
        found.append(from_lists(lists.combine_chunks()))
    return join_lists(found)


def no_neighbours(num_items: int) -> Neighbours:
    """Return empty lists."""
    return Neighbours(np.zeros(num_items + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


def shuffle_family(folder: Path, name: str, grains: int, seed: int) -> dict[str, Any]:
    """Return the arrays of a family in which every item has the phrases of another, random item."""
    vectors = np.load(folder / f"{name}.vectors.npy", mmap_mode="r")
    lists = load_arrays(Neighbours, folder, f"{name}.neighbours")
    order = np.random.default_rng(seed).permutation(len(vectors))
    length = np.diff(lists.start)[order]
    places = ranges(lists.start[order], length)
    found = np.argsort(order)[lists.item[places]].astype(np.int32)
    groups = [load_arrays(InterestGroups, folder, f"{name}.groups.{grain}") for grain in range(grains)]
    return {
        "vectors": vectors[order],
        "neighbours": Neighbours(np.concatenate([[0], np.cumsum(length)]), found, lists.weight[places]),
        "groups": [permute_items(each, order) for each in groups],
    }
