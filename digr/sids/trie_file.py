"""A trie as one safetensors file that is mapped into memory, so that replicas on one machine share its pages.

The file holds the trie's tensors and the bytes of its item ids. Its metadata have the format and the digest of `item_sids`,
so that the file of an older catalogue is never used.
"""

import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from digr import artifacts
from digr.artifacts import Store
from digr.sids.trie import SidTrie, load_trie

FORMAT = "digr-trie-1"
_BITS, _OFFSETS, _BYTES = "child_bits_", "id_offsets", "id_bytes"


def save_trie(trie: SidTrie, path: str | Path, digest: str) -> None:
    """Write a trie as one file, which appears at `path` only when complete.

    Args:
        digest: digest of the trie's `item_sids`, see `Manifest.digest`.
    """
    assert not len(trie.later_start), "a trie with items added in place has no file"
    ids = trie.item_ids
    _, offsets, data = ids.buffers()
    tensors = {name: value for name, value in trie._asdict().items() if isinstance(value, torch.Tensor) and len(value)}
    tensors |= {f"{_BITS}{level}": bits for level, bits in enumerate(trie.child_bits) if bits is not None}
    starts = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    text = np.frombuffer(data, np.uint8)[starts[0] : starts[-1]]
    tensors |= {_OFFSETS: torch.tensor(starts - starts[0]), _BYTES: torch.tensor(text)}
    facts = {"level_sizes": trie.level_sizes, "level_start": trie.level_start}
    draft = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous, draft, {"format": FORMAT, "digest": digest, "facts": json.dumps(facts)})
    draft.replace(path)


def map_trie(path: str | Path, digest: str) -> SidTrie:
    """Open a file of `save_trie`; tensors and ids are views of the mapped file, without a copy.

    Raises:
        ValueError: the file has another format or another digest.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a trie of format {FORMAT}, found {metadata.get('format')}; remove the file")
        if metadata["digest"] != digest:
            raise ValueError(f"{path}: a trie of item_sids {metadata['digest']}, expected {digest}; remove the file")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata["facts"])
    offsets, text = (pa.py_buffer(tensors.pop(name).numpy()) for name in (_OFFSETS, _BYTES))
    ids = pa.StringArray.from_buffers(len(tensors["codes"]), offsets, text)
    bits = tuple(tensors.pop(f"{_BITS}{level}", None) for level in range(len(facts["level_sizes"])))
    return SidTrie(
        item_ids=ids,
        level_sizes=tuple(facts["level_sizes"]),
        level_start=tuple(facts["level_start"]),
        child_bits=bits,
        **tensors,
    )


def open_trie(store: Store, folder: str | Path) -> SidTrie:
    """Map the trie of a run's `item_sids` from a local folder; the first reader on a machine builds and saves it there."""
    digest = artifacts.require(store, "item_sids").digest
    path = Path(folder).expanduser() / f"trie-{digest}.safetensors"
    if not path.exists():
        save_trie(load_trie(store), path, digest)
    return map_trie(path, digest)
