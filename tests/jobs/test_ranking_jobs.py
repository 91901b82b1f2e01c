"""The jobs of the ranker and of the towers see nothing of what they will be judged by."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import Config, build_config
from digr.ranking.views import load_view
from digr.tables import TABLES, conform, nest_interests
from jobs import build_neighbours, recommend, train_ranker, train_towers
from jobs.runtime.session import Options
from tests.tiny_models import make_text_encoder

pytestmark = pytest.mark.ray

ITEMS = [f"i{number:02d}" for number in range(30)]
OPTIONAL = {"interest_embedding", "text_only", "image_embedding", "text_embedding"}
IMAGES = np.random.default_rng(3).normal(size=(30, 5)).astype(np.float32)
IMAGES /= np.linalg.norm(IMAGES, axis=1, keepdims=True)
"""Vectors of images, of which the first 20 items have one."""
WORDS = ("camping", "baking", "sewing", "fishing", "painting")


def _put(store: Store, name: str, table: pa.Table, **facts) -> None:
    rows = artifacts.write_table(store, name, conform(name, table, "test"))
    artifacts.commit(store, Manifest(name=name, rows=rows, facts=facts))


def _histories(seed: int, changed: str = "") -> pa.Table:
    """Walks in which items follow each other around a ring; the rows of a changed split have other targets."""
    rng, rows, number = np.random.default_rng(seed), [], dict.fromkeys(("train", "valid", "test"), 0)
    walks = {f"u{user:02d}": (rng.integers(0, 30) + np.cumsum(rng.integers(1, 3, 8))) % 30 for user in range(40)}
    for place in range(1, 8):  # targets in the order of time
        for user, walk in walks.items():
            split = "train" if place < 6 else "valid" if place == 6 else "test"
            target = ITEMS[walk[place]] if split != changed else ITEMS[(walk[place] + 7) % 30]
            history = [ITEMS[item] for item in walk[:place]]
            rows.append((f"{split}-{number[split]:09d}", user, split, history, target))
            number[split] += 1
    names = ("example_id", "user_id", "split", "history", "target")
    table = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    return conform("histories", table, "test").sort_by([("user_id", "ascending"), ("example_id", "ascending")])


def _train_first(histories: pa.Table) -> pa.Table:
    """Sort each user's rows as `prepare_data` does: train, valid, test."""
    order = pc.index_in(histories["split"], pa.array(["train", "valid", "test"]))
    table = histories.append_column("order", order)
    return table.sort_by([("user_id", "ascending"), ("order", "ascending"), ("example_id", "ascending")]).drop_columns("order")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_text_encoder(tmp_path_factory.mktemp("encoder"))


def _build(folder, encoder, histories: pa.Table, texts: bool = True, words=WORDS, keep_from: str = "") -> Config:
    """Write what the jobs read, and run them: all of the ranker's, or only the first where groups of an earlier run are kept."""
    tree = {
        "run": {"dir": str(folder)},
        "data": {"split": "temporal"},
        "embeddings": {"encoder": {"name": str(encoder)}},
        "ranking": {"rounds": 20, "min_leaf_candidates": 5, "ablations": ["shuffled"], "interest_cosines": [0.7]}
        | ({"keep_from": keep_from} if keep_from else {}),
    }
    config, store, rng = build_config(tree, "test"), Store(str(folder)), np.random.default_rng(0)
    _put(store, "items", pa.table({"item_id": ITEMS, "title": [f"{WORDS[number % 5]} thing" for number in range(30)]}))
    split = histories["split"].to_pylist()
    _put(store, "histories", _train_first(histories), split_rows={name: split.count(name) for name in set(split)})
    owners = {"owner": pa.array(["item"] * 30), "owner_id": pa.array(ITEMS)}
    phrase = [f"weekend {words[number % 5]}" for number in range(30)]
    given = {"interest": phrase, "confidence": np.ones(30), "miners": [["m"]] * 30, "consensus": np.ones(30)}
    _put(store, "interests", nest_interests("interests", owners, np.arange(30), given))
    said = {"interest": phrase, "probability": np.ones(30), "label": np.ones(30, np.int8), "labelers": [["classifier"]] * 30}
    _put(store, "interest_labels", nest_interests("interest_labels", owners | {"quality": np.ones(30)}, np.arange(30), said))
    kind = TABLES["item_embeddings"].schema.field("embedding").type
    vectors = pa.array(rng.normal(size=(30, 8)).astype(np.float32).tolist(), kind)
    embeddings = {"item_id": ITEMS, "embedding": vectors} | ({"text_embedding": vectors} if texts else {})
    images = [vector if number < 20 else None for number, vector in enumerate(IMAGES.tolist())]
    embeddings["image_embedding"] = pa.array(images, TABLES["item_embeddings"].schema.field("image_embedding").type)
    _put(store, "item_embeddings", pa.table(embeddings | dict.fromkeys(OPTIONAL - embeddings.keys(), pa.nulls(30))))
    build_neighbours.run(config, Options())
    if not keep_from:
        train_ranker.run(config, Options())
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory, ray_local, encoder):
    """Run on some histories, on the same with other validation and test targets, and on their first rows alone."""
    histories = _histories(0)
    tail = [f"train-{number:09d}" for number in range(170, 200)]
    early = histories.filter(pc.invert(pc.is_in(histories["example_id"], pa.array(tail))))
    tables = {"whole": histories, "valid": _histories(0, "valid"), "test": _histories(0, "test"), "early": early}
    return {name: Store(_build(tmp_path_factory.mktemp(name), encoder, table).run.dir) for name, table in tables.items()}


def test_neighbours_by_image_are_those_of_the_nearest_centred_vectors_of_items_with_one(runs):
    images = IMAGES[:20] - IMAGES[:20].mean(axis=0)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    cosine = images @ images.T
    rows = artifacts.read_table(runs["whole"], "item_neighbours", source=["image"]).to_pylist()
    assert [row["item_id"] for row in rows] == ITEMS
    for item, row in enumerate(rows):
        found = {each["place"]: each["weight"] for each in row["neighbours"]}
        near = [] if item >= 20 else [other for other in range(20) if other != item and cosine[item, other] > 2e-3]
        assert found.keys() >= set(near) and all(place < 20 for place in found)
        assert [found[other] for other in near] == pytest.approx([float(cosine[item, other]) for other in near], abs=2e-3)
    view = load_view(Path(artifacts.filesystem_of(runs["whole"].uri("ranking_index"))[1]), "all", ("interests",), 1)
    assert set(view.contents) == {"text", "image"}
    assert not view.contents["image"].vectors[20:].any()


def _table(runs, name: str, table: str, **filters) -> pa.Table:
    return artifacts.read_table(runs[name], table, **filters).combine_chunks()


@pytest.mark.parametrize("changed", ["valid", "test"])
def test_neighbours_know_nothing_of_held_out_rows(runs, changed):
    assert _table(runs, "whole", "item_neighbours").equals(_table(runs, changed, "item_neighbours"))
    assert _arrays(runs["whole"]) == _arrays(runs[changed])


def _arrays(store: Store) -> dict[str, bytes]:
    folder = artifacts.filesystem_of(store.uri("ranking_index"))[1]
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.npy")}


def test_the_statistics_before_the_tail_are_those_of_the_rows_before_it(runs):
    """The run without the tail has a tail of its own, so only its statistics of all rows are compared."""
    whole, early = (_table(runs, name, "item_neighbours") for name in ("whole", "early"))
    for source in ("transitions", "next", "cooccurrence", "steps"):
        before = whole.filter(pc.equal(whole["source"], f"{source}_before"))
        assert before["neighbours"].equals(early.filter(pc.equal(early["source"], source))["neighbours"])
        assert sum(map(len, before["neighbours"].to_pylist())) > 0
    whole_files, early_files = _arrays(runs["whole"]), _arrays(runs["early"])
    for name in ("frequency", "transitions.item", "transitions.weight"):
        assert whole_files[f"before.{name}.npy"] == early_files[f"all.{name}.npy"]


def test_the_ranker_of_validation_rows_has_not_seen_them_and_that_of_test_rows_has(runs):
    def model(name: str, fitted: str) -> str:
        return Path(artifacts.filesystem_of(runs[name].uri("ranker"))[1], "ranked", fitted, "trees_0.txt").read_text()

    assert model("whole", "valid") == model("valid", "valid") == model("test", "valid")
    assert model("whole", "test") == model("test", "test")
    assert model("whole", "test") != model("valid", "test")


def test_the_examples_are_the_tail_and_the_validation_rows(runs):
    rows = _table(runs, "whole", "ranking_examples")
    by_fold = {fold: set(rows.filter(pc.equal(rows["fold"], fold))["example_id"].to_pylist()) for fold in ("before", "valid")}
    assert by_fold["before"] == {f"train-{number:09d}" for number in range(170, 200)}
    assert by_fold["valid"] == {f"valid-{number:09d}" for number in range(40)}


def test_a_later_run_keeps_the_canonical_interests_of_an_earlier_one(runs, tmp_path, encoder):
    words = ("kayaking", *WORDS[:-1])
    store = Store(_build(tmp_path, encoder, _histories(0), words=words, keep_from=runs["whole"].root).run.dir)
    before, after = (artifacts.read_table(found, "canonical_interests") for found in (runs["whole"], store))
    rows = {row["interest"]: (row["groups"], row["names"], row["num_items"]) for row in after.to_pylist()}
    assert {phrase: found[:2] for phrase, found in rows.items() if phrase != "weekend kayaking"} == {
        row["interest"]: (row["groups"], row["names"]) for row in before.to_pylist()
    }
    assert {phrase: found[2] for phrase, found in rows.items()} == {f"weekend {word}": 6 for word in words} | {
        f"weekend {WORDS[-1]}": 0
    }
    manifest = artifacts.require(store, "canonical_interests")
    assert manifest.facts == {"num_phrases": 6, "num_retired_phrases": 1, "num_kept_phrases": 4, "num_new_phrases": 1}
    assert manifest.inputs["file canonical_interests"] == artifacts.digest_of_files(runs["whole"].uri("canonical_interests"))
    tree = {"run": {"dir": str(tmp_path)}, "embeddings": {"encoder": {"name": str(encoder)}}}
    tree["ranking"] = {"keep_from": runs["whole"].root, "interest_cosines": [0.6]}
    with pytest.raises(ValueError, match=r"ranking\.interest_cosines is \[0\.6\], there \[0\.7\]"):
        build_neighbours.run(build_config(tree, "test"), Options())


def _train_towers(store: Store) -> list[str]:
    """Train both towers in a run and make the lists; returns what became of each job."""
    towers = {"enabled": True, "dim": 16, "num_layers": 1, "dropout": 0.0, "lr": 0.01, "epochs": 4, "batch_size": 8}
    tree = {"run": {"dir": store.root}, "data": {"split": "temporal"}, "towers": towers, "decoding": {"k": 5}}
    config = build_config(tree, "test")
    return [job(config, Options())["status"] for job in (train_towers.run, recommend.rank_towers)]


def test_towers_know_nothing_of_test_targets_and_list_items_for_each_held_out_history(tmp_path, ray_local, capsys):
    kind = TABLES["item_embeddings"].schema.field("embedding").type
    vectors = pa.array(np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32).tolist(), kind)
    weights = []
    for changed in ("", "test"):
        store = Store(str(tmp_path / f"run{changed}"))
        _put(store, "items", pa.table({"item_id": ITEMS, "title": ITEMS}))
        _put(store, "histories", _train_first(_histories(0, changed)))
        given = {"item_id": ITEMS, "embedding": vectors, "text_embedding": vectors}
        _put(store, "item_embeddings", pa.table(given | dict.fromkeys(OPTIONAL - given.keys(), pa.nulls(30))))
        assert _train_towers(store) == ["built", "built"]
        weights.append([path.read_bytes() for path in sorted(Path(store.uri("towers")).glob("*.safetensors"))])
    assert weights[0] == weights[1]
    assert len(weights[0]) == 2
    assert "towers: text_tower, epoch 4, loss " in capsys.readouterr().out
    store = Store(str(tmp_path / "run"))
    assert _train_towers(store) == ["skipped", "skipped"]
    histories = {row["example_id"]: row for row in artifacts.read_table(store, "histories").to_pylist()}
    for split in ("valid", "test"):
        wanted = {name for name, row in histories.items() if row["split"] == split}
        for system in ("sasrec", "text_tower", "two_towers"):
            lists = artifacts.read_table(store, f"recommendations/{system}_{split}").to_pylist()
            assert len(lists) == len(wanted) and {row["example_id"] for row in lists} == wanted
            assert all(len(set(row["item_ids"])) == 5 and row["scores"] == sorted(row["scores"])[::-1] for row in lists)
            hits = [histories[row["example_id"]]["target"] in row["item_ids"] for row in lists]
            assert system == "text_tower" or np.mean(hits) > 0.8  # these texts say nothing; by chance .17


def test_embeddings_of_an_older_build_name_the_job_that_rebuilds_them(tmp_path, encoder, ray_local):
    with pytest.raises(ValueError, match=r"no text_embedding, so an older version built it; run `digr embed CONFIG"):
        _build(tmp_path, encoder, _histories(0), texts=False)
