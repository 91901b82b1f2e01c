"""A trie's file gives back the same trie without copying it, and only for the catalogue it was made of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.sids.trie import build_trie, load_trie
from digr.sids.trie_file import map_trie, open_trie, save_trie
from tests.sids.catalogues import assert_equal_tries, random_trie


def test_a_mapped_trie_equals_the_saved_one(tmp_path):
    trie = random_trie(300, seed=0)
    save_trie(trie, tmp_path / "trie.safetensors", "d1")
    assert_equal_tries(map_trie(tmp_path / "trie.safetensors", "d1"), trie)
    assert [path.name for path in tmp_path.iterdir()] == ["trie.safetensors"]


def test_ids_that_are_a_slice_of_a_larger_column_are_saved_alone(tmp_path):
    ids = pa.array(["left out", "äpfel", "", "b", "left out too"])[1:4]
    trie = random_trie(3, seed=0)._replace(item_ids=ids)
    save_trie(trie, tmp_path / "trie.safetensors", "d1")
    mapped = map_trie(tmp_path / "trie.safetensors", "d1")
    assert mapped.item_ids.to_pylist() == ["äpfel", "", "b"]
    assert mapped.item_ids.type == pa.string()


def test_tensors_and_ids_lie_in_the_mapped_file(tmp_path):
    path = tmp_path / "trie.safetensors"
    save_trie(random_trie(300, seed=0), path, "d1")
    trie = map_trie(path, "d1")
    spans = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    addresses = [value.data_ptr() for value in (*trie, *trie.child_bits) if isinstance(value, torch.Tensor) and len(value)]
    addresses += [buffer.address for buffer in trie.item_ids.buffers() if buffer is not None]
    assert len(addresses) >= 11
    assert all(any(start <= address < end for start, end in spans) for address in addresses)


def test_a_file_of_another_catalogue_or_format_is_refused(tmp_path):
    path = tmp_path / "trie.safetensors"
    save_trie(random_trie(30, seed=0), path, "d1")
    with pytest.raises(ValueError, match=r"a trie of item_sids d1, expected d2; remove the file"):
        map_trie(path, "d2")
    save_file(load_file(path), path, {"format": "digr-trie-0"})
    with pytest.raises(ValueError, match=r"expected a trie of format digr-trie-1, found digr-trie-0"):
        map_trie(path, "d1")


def test_the_first_reader_of_a_machine_builds_the_file_and_a_new_catalogue_gets_its_own(tmp_path):
    store, folder = Store(str(tmp_path / "run")), tmp_path / "tries"
    for codes in ([[0, 1], [1, 0]], [[0, 1], [1, 1], [2, 0]]):
        artifacts.begin(store, "item_sids")
        table = pa.table({"item_id": [f"i{row}" for row in range(len(codes))], "codes": pa.array(codes, pa.list_(pa.int32()))})
        artifacts.write_table(store, "item_sids", table)
        artifacts.commit(store, Manifest(name="item_sids", rows=len(codes), facts={"level_sizes": [3, 2]}))
        assert_equal_tries(open_trie(store, folder), load_trie(store))
    assert len(list(folder.iterdir())) == 2
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    open_trie(store, folder)
    assert kept == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_catalogue_without_bits_maps_too(tmp_path):
    trie = build_trie(["a", "b"], np.array([[0, 500], [999, 3]]), (1000, 1000))
    assert None in trie.child_bits
    save_trie(trie, tmp_path / "trie.safetensors", "d1")
    assert_equal_tries(map_trie(tmp_path / "trie.safetensors", "d1"), trie)
