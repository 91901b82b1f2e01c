"""The jobs from interests to item vectors, on a hand-made catalogue, through Ray."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Manifest, StaleArtifact, Store
from digr.config import Config, apply_overrides, build_config
from digr.config.models import EncoderConfig
from digr.models.encoders import load_encoder
from digr.tables import flat_interests
from jobs import embed_items, label_interests, train_classifier
from jobs.runtime.session import Options
from tests.nested_interests import nest_rows
from tests.rewards.judge_server import serve_judge
from tests.tiny_models import make_image_encoder, make_text_encoder

pytestmark = pytest.mark.ray

TITLES = {"a": "cordless drill", "b": "garden hose", "c": "soldering iron", "d": "grass seed"}
INTERESTS = [
    ("a", "diy home renovation", 0.9, 1),
    ("a", "everyday use", 0.5, 0),
    ("b", "keeping a lawn healthy", 0.8, 1),
    ("c", "everyday use", None, 0),
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
    names = ("owner_id", "interest", "confidence", "label")
    rows = [dict(zip(names, row, strict=True)) for row in INTERESTS]
    mined = [row | {"miners": ["short" if row["owner_id"] == "b" else "m"]} for row in rows]
    _commit(store, "interests", nest_rows("interests", mined, list(TITLES)))
    _commit(store, "interest_labels", nest_rows("interest_labels", rows, list(TITLES), quality=[0.9, 1.0, 0.0, 0.0]))
    miners = [{"kind": "extractive", "name": "m"}, {"kind": "extractive", "name": "short", "max_words": 2}]
    return build_config({"run": {"dir": str(tmp_path)}, "interests": {"miners": miners}}, where="test")


def test_item_vectors_follow_the_labels_and_ablations_change_the_embedding_only(config, ray_local):
    summary = embed_items.run(config, Options())
    assert summary["facts"]["item_embeddings"] == {
        "dim": 384,
        "num_text_only": 2,
        "num_without_trusted_interests": 2,
        "part_starts": [""],
    }
    store = Store(config.run.dir)
    table = artifacts.read_table(store, "item_embeddings")
    encode = load_encoder(EncoderConfig())
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

    less = apply_overrides(config, {"run.variant": "without_short", "embeddings.without_miners": ["short"]})
    assert embed_items.run(less, Options())["facts"]["item_embeddings"]["num_text_only"] == 3, (
        "what `short` alone found is left out"
    )
    other = artifacts.read_table(Store(config.run.dir, "without_short"), "item_embeddings")
    np.testing.assert_allclose(np.array(other["embedding"].to_pylist()), np.concatenate([found[:1], text[1:]]), atol=1e-5)
    assert other["interest_embedding"].to_pylist() == table["interest_embedding"].to_pylist()
    assert embed_items.run(config, Options())["status"] == "skipped"


def test_new_weights_in_the_encoders_folder_make_the_vectors_stale(config, tmp_path, ray_local):
    folder = make_text_encoder(tmp_path / "encoder")
    config = apply_overrides(config, {"embeddings.encoder": {"name": str(folder), "max_tokens": 32}})
    assert embed_items.run(config, Options())["facts"]["item_embeddings"]["dim"] == 64
    assert embed_items.run(config, Options())["status"] == "skipped"
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\x07")
    with pytest.raises(StaleArtifact, match=r"different: input model embeddings.encoder\)"):
        embed_items.run(config, Options())


THINGS = {
    "garden": ("hose", "rake", "seed", "spade"),
    "kitchen": ("pan", "knife", "bowl", "oven"),
    "boat": ("rope", "anchor", "oar", "sail"),
}


@pytest.fixture
def shop(tmp_path) -> Config:
    """A catalogue whose items each have a grounded interest, and every fourth one a generic one too; the last has none."""
    store = Store(str(tmp_path))
    titles = [f"{place} {thing} size {size}" for place, things in THINGS.items() for thing in things for size in range(4)]
    ids = [f"{index:02d}" for index in range(len(titles))]
    _commit(store, "items", pa.table({"item_id": ids, "title": titles}))
    rows = []
    for index, title in enumerate(titles[:-1]):
        phrases = [f"{title.split()[0]} work with a {title.split()[1]}"] + ["everyday use"] * (index % 4 == 0)
        rows += [{"owner_id": ids[index], "interest": phrase, "confidence": 0.8} for phrase in phrases]
    rows += [{"owner": "user", "owner_id": "u", "interest": x} for x in ("nonsense garden hose", "kitchen work with a pan")]
    _commit(store, "interests", nest_rows("interests", rows, ids, ["u"]))
    steps = [
        {"example_id": f"u{step}", "user_id": "u", "split": "train", "history": ids[max(0, step - 3) : step], "target": ids[step]}
        for step in range(12)
    ]
    _commit(store, "histories", pa.Table.from_pylist(steps))
    classifier = {"max_pairs": 150, "valid_share": 0.3, "base": {"max_tokens": 16}, "folds": 2}
    interests = {"owners": ["item", "user"]}
    return build_config({"run": {"dir": str(tmp_path)}, "classifier": classifier, "interests": interests}, where="test")


def test_the_classifier_is_trained_and_all_labelers_label_every_interest_once(shop, ray_local, monkeypatch):
    trained = train_classifier.run(shop, Options())
    facts = trained["facts"]["classifier"]
    assert facts["auroc"] > 0.8
    assert facts["num_held_out_pairs"] > 0
    assert not list(Path(shop.run.dir).glob("classifier.work-*"))
    assert "model classifier.base" in artifacts.require(Store(shop.run.dir), "classifier").inputs

    monkeypatch.setenv("DIGR_TEST_KEY", "any")
    with serve_judge() as server:
        judge = {"kind": "openai", "base_url": server.url, "model": "m", "api_key_env": "DIGR_TEST_KEY"}
        overrides = {"labels.labelers": ["classifier", "judge", "behavioural"], "labels.judge": judge, "labels.min_lift": 1.0}
        labelled = label_interests.run(apply_overrides(shop, overrides), Options())
    store = Store(shop.run.dir)
    interests = flat_interests(artifacts.read_table(store, "interests"))
    rated = artifacts.read_table(store, "interest_labels")
    labels = flat_interests(rated)
    assert "model classifier.base" in artifacts.require(store, "interest_labels").inputs
    key = ["owner", "owner_id", "rank", "interest"]
    assert labels.select(key).equals(interests.select(key))
    probability = np.array(labels["probability"])
    assert ((probability >= 0.5) == (np.array(labels["label"]) == 1)).all()
    generic = np.array(labels["interest"].to_pylist()) == "everyday use"
    of_item = np.array(labels["owner"].to_pylist()) == "item"
    by_classifier = np.array(labels["classifier_probability"])
    assert by_classifier[of_item & ~generic].mean() > by_classifier[generic].mean()
    by_judge = np.array(labels["judge_probability"].to_pylist(), float)
    np.testing.assert_allclose(by_judge[of_item], np.where(generic[of_item], 0.2, 0.9), atol=1e-6)
    behavioural = dict(zip(labels["interest"].to_pylist(), labels["behavioural_probability"].to_pylist(), strict=True))
    assert behavioural["garden work with a hose"] > 0.5
    assert behavioural["boat work with a sail"] is None
    users = [row for row in labels.to_pylist() if row["owner"] == "user"]
    assert [row["labelers"] for row in users] == [["classifier"], ["classifier", "judge"]]
    assert labelled["facts"]["interest_labels"]["num_interests_of_users"] == 2
    assert labelled["facts"]["interest_labels"]["agreement"]["classifier and judge"]["num_interests"] == len(interests) - 1
    assert artifacts.require(store, "interest_labels").rejected == {"judge: unparsable": 1}
    assert len(server.bodies) == len(interests)

    assert rated["owner_id"].to_pylist() == [*(f"{index:02d}" for index in range(48)), "u"]
    last = rated.slice(47, 1).to_pylist()[0]
    assert (last["interests"], last["quality"]) == ([], 0.0)
    own = np.array(labels["owner_id"].to_pylist()) == "00"
    assert rated["quality"][0].as_py() == pytest.approx(np.array(labels["label"])[own & of_item].mean())
    assert sum(labelled["facts"]["interest_labels"]["quality_counts"]) == 47
    assert labelled["facts"]["interest_labels"]["num_without_interests"] == 1
    assert embed_items.run(shop, Options())["rows"] == {"item_embeddings": 48}


def test_an_item_with_an_image_gets_its_vector_and_one_without_gets_none(config, tmp_path):
    Image.new("RGB", (40, 40), "green").save(tmp_path / "a.png")
    folder = make_image_encoder(tmp_path / "clip", "clip")
    store = Store(config.run.dir)
    uris = [str(tmp_path / "a.png"), str(tmp_path / "gone.png"), None, None]
    items = artifacts.read_table(store, "items").drop_columns(["image_uri"]).append_column("image_uri", pa.array(uris))
    embed = embed_items.Embed(apply_overrides(config, {"embeddings.image_encoder": str(folder)}), store)
    nested = [artifacts.read_table(store, name) for name in ("interests", "interest_labels")]
    found = embed.embed(items, *nested)["image_embedding"].to_pylist()
    assert len(found[0]) == 24 and np.linalg.norm(found[0]) == pytest.approx(1, rel=1e-5)
    assert found[1:] == [None, None, None]
    assert embed.embed(items.slice(2), *(table.slice(2) for table in nested))["image_embedding"].null_count == 2
