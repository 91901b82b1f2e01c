"""Arrays, texts and indices of ids in files that are mapped into memory, so that all replicas on a machine share their pages.

A mapping is private: what a process writes into it changes its own copies of the touched pages and nothing else. Each file ends
in a hole, which needs no disk, so that a process can add entries after the last one without copying those before it.
"""

import mmap
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Int64, Shaped, UInt8

from digr.data.ids import IdIndex, build_id_index

ROOM, ROOM_BYTES = 1 << 22, 1 << 30
"""Entries that can be added to a mapped array; of texts, bytes."""
MAX_TEXT_BYTES = (1 << 31) - 1
"""Bytes of all texts of one array, the added ones included."""


def save_array(folder: Path, name: str, values: Shaped[np.ndarray, " N"]) -> None:
    """Write an array as `<name>.<type>.<number of entries>`."""
    with (folder / f"{name}.{values.dtype.str[1:]}.{len(values)}").open("wb") as file:
        np.ascontiguousarray(values).tofile(file)
        file.truncate((len(values) + _room(values.dtype)) * values.dtype.itemsize)


def map_array(folder: Path, name: str, more: Shaped[np.ndarray, " M"] | None = None) -> Shaped[np.ndarray, " N"]:
    """Map an array of `save_array`, with further entries after its last one.

    Raises:
        ValueError: there is no such array, or no room for so many entries.
    """
    path, kind, num = _find(folder, name)
    added = 0 if more is None else len(more)
    if added > _room(kind):
        raise ValueError(f"{path}: {added} entries to add, room for {_room(kind)}; build the run again with the added items")
    with path.open("rb") as file:  # not np.memmap, whose look-up of the path takes longer than the mapping
        mapped = np.frombuffer(mmap.mmap(file.fileno(), (num + max(added, 1)) * kind.itemsize, access=mmap.ACCESS_COPY), kind)
    if more is not None:
        mapped[num : num + added] = more
    return mapped[: num + added]


def lazy_zeros(count: int) -> Int64[np.ndarray, " N"]:
    """Return zeros that take time and memory only where they are written."""
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * 8), np.int64)[:count]


def save_texts(folder: Path, name: str, texts: pa.Array) -> None:
    """Write texts, none of them null.

    Raises:
        ValueError: they are too long together.
    """
    assert not texts.null_count, name
    starts = np.concatenate([[0], np.cumsum(_lengths(texts))])
    _check_bytes(name, int(starts[-1]))
    save_array(folder, f"{name}-starts", starts.astype(np.int32))
    save_array(folder, f"{name}-bytes", _bytes(texts))


def map_texts(folder: Path, name: str, more: pa.Array | None = None) -> pa.StringArray:
    """Map texts of `save_texts`, with further texts after the last one.

    Raises:
        ValueError: there are no such texts, or no room for so many.
    """
    if more is None:
        more = pa.array([], pa.string())
    num_bytes = _find(folder, f"{name}-bytes")[2]
    _check_bytes(name, num_bytes + int(_lengths(more).sum()))
    starts = map_array(folder, f"{name}-starts", (num_bytes + np.cumsum(_lengths(more))).astype(np.int32))
    data = map_array(folder, f"{name}-bytes", _bytes(more))
    return pa.StringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), pa.py_buffer(data))


def save_id_index(folder: Path, name: str, ids: pa.Array) -> IdIndex:
    """Index distinct ids, and write the index."""
    index = build_id_index(ids)
    save_texts(folder, name, ids)
    save_array(folder, f"{name}-ordered", index.ordered)
    save_array(folder, f"{name}-places", index.places.astype(np.int32))
    return index


def map_id_index(folder: Path, name: str, later: pa.Array | None = None, texts: pa.Array | None = None) -> IdIndex:
    """Map an index of `save_id_index`, with further ids after its own.

    Args:
        texts: the ids of the file, if they are mapped already.
    """
    ids = map_texts(folder, name) if texts is None else texts
    more = build_id_index(later) if later is not None and len(later) else None
    return IdIndex(ids, map_array(folder, f"{name}-ordered"), map_array(folder, f"{name}-places"), more)


def _room(kind: np.dtype) -> int:
    return ROOM_BYTES if kind == np.uint8 else ROOM


def _check_bytes(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_TEXT_BYTES:
        raise ValueError(f"{name}: {num_bytes} bytes of text, at most {MAX_TEXT_BYTES} are mapped; serve a smaller catalogue")


def _find(folder: Path, name: str) -> tuple[Path, np.dtype, int]:
    """Return the file of an array, its type and its number of entries."""
    if name not in _arrays_of(folder):
        _arrays_of.cache_clear()  # it may have been written meanwhile
    if name not in _arrays_of(folder):
        raise ValueError(f"{folder}: found no array {name}; remove the folder, and it is built again")
    return _arrays_of(folder)[name]


@lru_cache(maxsize=64)
def _arrays_of(folder: Path) -> dict[str, tuple[Path, np.dtype, int]]:
    """Return the arrays of a folder by name; a folder's files do not change once it is built."""
    parts = [(path, path.name.rsplit(".", 2)) for path in folder.iterdir() if path.name.count(".") >= 2]
    return {name: (path, np.dtype(kind), int(count)) for path, (name, kind, count) in parts}


def _lengths(texts: pa.Array) -> Int[np.ndarray, " N"]:
    return pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)


def _bytes(texts: pa.Array) -> UInt8[np.ndarray, " P"]:
    whole = pa.concat_arrays([texts.cast(pa.string())])  # without the offset of a slice
    data = whole.buffers()[2]
    return np.frombuffer(data, np.uint8)[: int(_lengths(whole).sum())] if data is not None else np.zeros(0, np.uint8)
