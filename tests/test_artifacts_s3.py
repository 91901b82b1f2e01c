"""Artifacts live on S3 as on a disk; the server is moto's, spoken to over HTTP."""

from collections.abc import Iterator

import boto3
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from digr import artifacts
from digr.artifacts import Manifest, Store


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Serve one empty bucket on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="digr")
        yield "s3://digr"
    server.stop()


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
