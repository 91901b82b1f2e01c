"""Artifacts live on S3 as on a disk; the server is moto's, spoken to over HTTP."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.ranking.building import FamilyFiles, write_phrases
from digr.ranking.grouping import group_all, read_known
from digr.ranking.phrases import PHRASES
from tests.buckets import serve_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Serve one empty bucket on loopback."""
    with serve_bucket("digr") as address:
        yield address


def _items(*ids: str) -> pa.Table:
    return pa.table({"item_id": list(ids), "title": [f"item {item}" for item in ids]})


def test_an_artifact_exists_on_s3_from_its_manifest_on(bucket):
    store = Store(f"{bucket}/run")
    assert artifacts.is_remote(store.root)
    artifacts.begin(store, "items")
    artifacts.write_table(store, "items", _items("a", "b"))
    assert artifacts.read_manifest(store, "items") is None
    artifacts.commit(store, Manifest(name="items", rows=2))
    assert artifacts.require(store, "items").rows == 2
    assert artifacts.read_table(store, "items", ["title"], item_id=["b"])["title"].to_pylist() == ["item b"]
    artifacts.begin(store, "items")
    assert artifacts.read_manifest(store, "items") is None
    assert artifacts.list_parts(store.uri("items")) == []


def test_files_go_to_s3_and_come_back(bucket, tmp_path):
    store = Store(f"{bucket}/models")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.txt").write_text("w")
    artifacts.begin(store, "policy_sft")
    artifacts.put_files(store, "policy_sft", tmp_path)
    artifacts.commit(store, Manifest(name="policy_sft"))
    with artifacts.local_files(store, "policy_sft") as folder:
        assert (folder / "sub" / "weights.txt").read_text() == "w"
    before = artifacts.digest_of_files(store.uri("policy_sft"))
    artifacts.remove(store.uri("policy_sft"))
    with pytest.raises(ValueError, match="no such file or folder"):
        artifacts.digest_of_files(store.uri("policy_sft"))
    assert len(before) == 16


def test_of_many_files_on_s3_only_those_of_a_prefix_are_fetched(bucket, tmp_path):
    store = Store(f"{bucket}/index")
    for name in ("text.vectors.npy", "text_twin.vectors.npy", "text.faiss"):
        (tmp_path / name).write_text(name)
    artifacts.put_files(store, "ranking_index", tmp_path)
    with artifacts.fetch_files(store.uri("ranking_index"), "text.") as folder:
        assert {file.name: file.read_text() for file in folder.iterdir()} == {
            "text.vectors.npy": "text.vectors.npy",
            "text.faiss": "text.faiss",
        }


def test_canonical_interests_of_a_run_on_s3_are_kept_by_a_later_one_there(bucket):
    vectors, known = {"trout": [1.0, 0.0], "bread": [0.0, 1.0], "river trout": [0.8, 0.6]}, None
    for number, phrases in enumerate((["trout", "bread"], ["river trout", "bread"])):
        store, files = Store(f"{bucket}/canonical{number}"), FamilyFiles(f"{bucket}/work{number}")
        with artifacts.open_part(f"{files.rows}/{artifacts.part_name(0)}", PHRASES) as writer:
            writer.write_table(pa.table({"row": [0, 1], "interest": phrases, "weight": [1.0, 1.0]}).cast(PHRASES))
        write_phrases(files, known)
        names = artifacts.open_parts(files.phrases).to_table()["interest"].to_pylist()
        table = pa.table({"vector": pa.array([vectors[name] for name in names], pa.list_(pa.float32()))})
        with artifacts.open_part(f"{files.vectors}/{artifacts.part_name(0)}", table.schema) as writer:
            writer.write_table(table)
        found, _ = group_all(files, (0.7,), max_phrases=100, seed=0, known=known)
        artifacts.write_table(store, "canonical_interests", found)
        artifacts.commit(store, Manifest(name="canonical_interests", rows=len(found)))
        known = read_known(store)
    rows = {row["interest"]: (row["groups"], row["names"]) for row in known.to_pylist()}
    first = {row["interest"]: (row["groups"], row["names"]) for row in read_known(Store(f"{bucket}/canonical0")).to_pylist()}
    assert rows == first | {"river trout": first["trout"]}
