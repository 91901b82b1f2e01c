"""The jobs from interests to item vectors, on a hand-made catalogue, through Ray."""

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import Config, apply_overrides, build_config
from digr.embeddings import load_encoder
from jobs import embed_items
from jobs.runtime import Options

pytestmark = pytest.mark.ray

TITLES = {"a": "cordless drill", "b": "garden hose", "c": "soldering iron", "d": "grass seed"}
INTERESTS = [
    ("a", 1, "diy home renovation", 0.9, 1),
    ("a", 2, "everyday use", 0.5, 0),
    ("b", 1, "keeping a lawn healthy", 0.8, 1),
    ("c", 1, "everyday use", None, 0),
]


def _commit(store: Store, name: str, table: pa.Table) -> None:
    artifacts.begin(store, name)
    artifacts.write_table(store, name, table)
    artifacts.commit(store, Manifest(name=name, rows=len(table)))


@pytest.fixture
def config(tmp_path) -> Config:
    """Artifacts up to the labels, written by hand."""
    store = Store(str(tmp_path))
    _commit(store, "items", pa.table({"item_id": list(TITLES), "title": list(TITLES.values())}))
    owner_id, rank, interest, confidence, label = (list(column) for column in zip(*INTERESTS, strict=True))
    common = {"owner": ["item"] * 4, "owner_id": owner_id, "rank": pa.array(rank, pa.int32()), "interest": interest}
    miners = {"confidence": confidence, "miners": [["m"]] * 4, "consensus": [1.0] * 4}
    _commit(store, "interests", pa.table(common | miners))
    labels = {"probability": [0.5] * 4, "label": pa.array(label, pa.int8()), "labeler": ["classifier"] * 4}
    _commit(store, "interest_labels", pa.table(common | labels))
    quality = {"quality": [0.9, 1.0, 0.0, 0.0], "num_interests": pa.array([2, 1, 1, 0], pa.int32())}
    _commit(store, "item_quality", pa.table({"item_id": list(TITLES)} | quality))
    return build_config({"run": {"dir": str(tmp_path)}, "cluster": {"encode_workers": 2}}, where="test")


def test_item_vectors_follow_the_labels_and_the_ablation_changes_the_embedding_only(config, ray_local):
    summary = embed_items.run(config, Options())
    assert summary["facts"]["item_embeddings"] == {"dim": 384, "num_text_only": 2, "num_without_trusted_interests": 2}
    store = Store(config.run.dir)
    table = artifacts.read_table(store, "item_embeddings")
    encode = load_encoder("minilm", 128)
    assert table["item_id"].to_pylist() == ["a", "b", "c", "d"]
    text, trusted = encode(list(TITLES.values())), encode(["diy home renovation", "keeping a lawn healthy"])
    found = np.array(table["embedding"].to_pylist())
    mixed = text[:2] + trusted
    np.testing.assert_allclose(found[:2], mixed / np.linalg.norm(mixed, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found[2:], text[2:], atol=1e-5)
    np.testing.assert_allclose(np.array(table["interest_embedding"].to_pylist()[:2]), trusted, atol=1e-5)
    assert table["interest_embedding"].to_pylist()[2:] == [None, None]

    bare = apply_overrides(config, {"run.variant": "without_interests", "embeddings.interests": "none"})
    assert embed_items.run(bare, Options())["facts"]["item_embeddings"]["num_text_only"] == 4
    other = artifacts.read_table(Store(config.run.dir, "without_interests"), "item_embeddings")
    np.testing.assert_allclose(np.array(other["embedding"].to_pylist()), text, atol=1e-5)
    assert other["interest_embedding"].to_pylist() == table["interest_embedding"].to_pylist()
    assert embed_items.run(config, Options())["status"] == "skipped"
