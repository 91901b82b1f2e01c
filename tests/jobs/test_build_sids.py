"""The job writes unique SIDs for every embedded item, and its facts."""

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import build_config
from digr.sids.fitting import load_quantiser
from jobs import build_sids
from jobs.runtime.session import Options


def _embedded(root, num_items=60, dim=8, twins=1):
    """Write the two artifacts the job reads: four clusters, each vector `twins` times, the first one once more."""
    store, rng = Store(str(root)), np.random.default_rng(0)
    vectors = (np.repeat(np.eye(4, dim), num_items // 4, axis=0) * 5 + rng.normal(size=(num_items, dim))).astype(np.float32)
    vectors = vectors[np.arange(num_items) // twins * twins]
    vectors[1] = vectors[0]
    ids = [f"item{index:03d}" for index in range(num_items)]
    artifacts.write_table(store, "item_embeddings", pa.table({"item_id": ids, "embedding": list(vectors)}))
    artifacts.commit(store, Manifest(name="item_embeddings", rows=num_items))
    histories = {
        "example_id": ["e0", "e1"],
        "user_id": ["u", "u"],
        "split": ["train", "test"],
        "history": [["item002"], ["item002", "item040"]],
        "target": ["item040", "item000"],
    }
    artifacts.write_table(store, "histories", pa.table(histories))
    artifacts.commit(store, Manifest(name="histories", rows=2))
    return store, vectors


def _config(root, **sids):
    tree = {"quantiser": "rkmeans", "level_sizes": [4, 8], "latent_dim": 4, "hidden_dims": [16], "epochs": 20, **sids}
    return build_config({"run": {"dir": str(root)}, "sids": tree}, where="test")


@pytest.mark.parametrize("kind", ["rkmeans", "rqvae"])
def test_every_item_gets_its_own_sid_and_the_saved_quantiser_gives_the_first_code(tmp_path, kind):
    store, vectors = _embedded(tmp_path)
    summary = build_sids.run(_config(tmp_path, quantiser=kind), Options())
    assert summary["status"] == "built"
    table = artifacts.read_table(store, "item_sids")
    codes = table["codes"].to_pylist()
    assert table["item_id"].to_pylist() == [f"item{index:03d}" for index in range(60)]
    assert len({tuple(row) for row in codes}) == 60
    with artifacts.local_files(store, "quantiser") as folder:
        nearest = load_quantiser(folder).assign(vectors)
    assert [row[0] for row in codes] == nearest[:, 0].tolist()
    facts = artifacts.require(store, "item_sids").facts
    assert facts["level_sizes"][:2] == [4, 8] and len(facts["level_sizes"]) == max(len(row) for row in codes)
    assert facts["num_cointeraction_pairs"] == 1 and facts["raw_collision_rate"] > 0
    assert artifacts.require(store, "quantiser").facts == {
        "kind": kind,
        "level_sizes": [4, 8],
        "num_retired_sids": 0,
    }


def test_the_job_is_skipped_when_current_and_repeats_itself_when_forced(tmp_path):
    store, _ = _embedded(tmp_path)
    build_sids.run(_config(tmp_path), Options())
    first = artifacts.require(store, "item_sids").digest, artifacts.read_table(store, "item_sids")
    assert build_sids.run(_config(tmp_path), Options())["status"] == "skipped"
    build_sids.run(_config(tmp_path), Options(force="all"))
    assert artifacts.require(store, "item_sids").digest == first[0]
    assert artifacts.read_table(store, "item_sids").equals(first[1])


def test_a_fit_on_a_sample_still_gives_every_item_a_sid(tmp_path):
    store, _ = _embedded(tmp_path)
    build_sids.run(_config(tmp_path, max_fit_items=20), Options())
    assert len(artifacts.read_table(store, "item_sids")) == 60


def test_a_level_with_unused_codes_fails_and_leaves_no_artifact(tmp_path):
    store, _ = _embedded(tmp_path, twins=4)
    config = _config(tmp_path, level_sizes=[4, 50], min_usage_rate=0.99)
    with pytest.raises(ValueError, match=r"item_sids: level 2 uses .* of its 50 codes; expected at least 99\.0%"):
        build_sids.run(config, Options())
    assert artifacts.read_manifest(store, "item_sids") is None


@pytest.mark.ray
def test_two_workers_that_each_read_half_of_the_vectors_fit_as_well_as_one_process(tmp_path, ray_local, capsys):
    rng, facts = np.random.default_rng(0), {}
    flat = rng.uniform(-2, 2, size=(801, 3))
    lifted = np.column_stack([flat, flat**2, np.sin(3 * flat), np.cos(2 * flat)]).astype(np.float32)
    for name, above in (("one", 1000), ("two", 500)):
        store = Store(str(tmp_path / name))
        for part in (slice(0, 400), slice(400, 801)):
            rows = pa.table({"item_id": [f"item{index:03d}" for index in range(801)][part], "embedding": list(lifted[part])})
            artifacts.write_table(store, "item_embeddings", rows)
            folder = tmp_path / name / "item_embeddings"
            (folder / "part-00000.parquet").rename(folder / f"part-{part.stop:05d}.parquet")
        artifacts.commit(store, Manifest(name="item_embeddings", rows=801))
        pairs = {"example_id": ["e"], "user_id": ["u"], "split": ["train"], "history": [["item002"]], "target": ["item040"]}
        artifacts.write_table(store, "histories", pa.table(pairs))
        artifacts.commit(store, Manifest(name="histories", rows=1))
        sids = {"quantiser": "rqvae", "level_sizes": [16, 16, 16], "latent_dim": 6, "epochs": 40, "workers_above": above}
        build_sids.run(_config(tmp_path / name, **sids, batch_size=128), Options())
        facts[name] = artifacts.require(store, "item_sids").facts
    assert capsys.readouterr().out.count("fitted by 2 workers") == 1
    one, two = facts["one"], facts["two"]
    assert two["reconstruction_r2"] > 0.8
    assert two["reconstruction_r2"] == pytest.approx(one["reconstruction_r2"], abs=0.01)
    assert two["raw_collision_rate"] == pytest.approx(one["raw_collision_rate"], abs=0.05)
    assert two["usage_rate"] == one["usage_rate"] == [1, 1, 1]


def _changed(store, root, vectors, keep, num_new):
    """A later run: some of the items, and new ones near the first cluster."""
    later, rng = Store(str(root)), np.random.default_rng(1)
    table = artifacts.read_table(store, "item_embeddings").take(keep)
    fresh = (vectors[:1] + rng.normal(size=(num_new, vectors.shape[1]))).astype(np.float32)
    added = pa.table({"item_id": [f"new{index}" for index in range(num_new)], "embedding": list(fresh)})
    both = pa.concat_tables([table.select(["item_id", "embedding"]), added.cast(table.select(["item_id", "embedding"]).schema)])
    artifacts.write_table(later, "item_embeddings", both)
    artifacts.commit(later, Manifest(name="item_embeddings", rows=len(both)))
    artifacts.write_table(later, "histories", artifacts.read_table(store, "histories"))
    artifacts.commit(later, Manifest(name="histories", rows=2))
    return later


def test_a_later_run_keeps_every_sid_adds_new_items_and_never_gives_a_retired_sid_again(tmp_path):
    store, vectors = _embedded(tmp_path / "first")
    build_sids.run(_config(tmp_path / "first"), Options())
    before = {row["item_id"]: row["codes"] for row in artifacts.read_table(store, "item_sids").to_pylist()}
    second = _changed(store, tmp_path / "second", vectors, np.arange(10, 60), num_new=7)
    build_sids.run(_config(tmp_path / "second", keep_from=str(tmp_path / "first")), Options())
    after = {row["item_id"]: row["codes"] for row in artifacts.read_table(second, "item_sids").to_pylist()}
    assert {name: after[name] for name in list(before)[10:]} == dict(list(before.items())[10:])
    ever = {tuple(codes) for codes in [*before.values(), *(after[f"new{index}"] for index in range(7))]}
    assert len(ever) == 67 and len(after) == 57
    facts = artifacts.require(second, "item_sids").facts
    assert (facts["num_kept_items"], facts["num_new_items"], facts["num_retired_items"]) == (50, 7, 10)
    third = _changed(store, tmp_path / "third", vectors, np.arange(60), num_new=0)
    build_sids.run(_config(tmp_path / "third", keep_from=str(tmp_path / "second")), Options())
    assert {row["item_id"]: row["codes"] for row in artifacts.read_table(third, "item_sids").to_pylist()} == before


def test_sids_are_not_kept_across_other_choices(tmp_path):
    store, vectors = _embedded(tmp_path / "first")
    build_sids.run(_config(tmp_path / "first"), Options())
    _changed(store, tmp_path / "second", vectors, np.arange(60), num_new=0)
    config = _config(tmp_path / "second", keep_from=str(tmp_path / "first"), level_sizes=[4, 9])
    with pytest.raises(
        ValueError, match=r"sids\.keep_from = .*sids\.level_sizes is \[4, 9\], there \[4, 8\]; .*leave sids\.keep_from empty"
    ):
        build_sids.run(config, Options())


def test_auto_is_a_choice_and_what_it_gave_a_fact_and_a_later_run_keeps_it(tmp_path):
    store, vectors = _embedded(tmp_path / "first", num_items=100)
    build_sids.run(_config(tmp_path / "first", level_sizes="auto"), Options())
    manifest = artifacts.require(store, "item_sids")
    assert manifest.config["sids"]["level_sizes"] == "auto" and manifest.facts["level_sizes"][:3] == [8, 8, 8]
    assert artifacts.require(store, "quantiser").facts["level_sizes"] == [8, 8, 8]
    later = _changed(store, tmp_path / "later", vectors, np.arange(20), num_new=3)  # of 23 items, auto would give 4 codes
    build_sids.run(_config(tmp_path / "later", keep_from=str(tmp_path / "first"), level_sizes="auto"), Options())
    assert artifacts.require(later, "quantiser").facts["level_sizes"] == [8, 8, 8]
    build_sids.run(_config(tmp_path / "later", keep_from=str(tmp_path / "first"), level_sizes=[8, 8, 8]), Options(force="all"))
    with pytest.raises(ValueError, match=r"sids\.level_sizes is \[4, 8\], there \[8, 8, 8\]"):
        build_sids.run(_config(tmp_path / "later", keep_from=str(tmp_path / "first")), Options(force="all"))


@pytest.mark.parametrize("sizes", ["auto", [256, 256, 256]])
@pytest.mark.parametrize("kind", ["rkmeans", "rqvae"])
def test_items_that_are_all_alike_get_sids_of_their_own(tmp_path, kind, sizes):
    store, _ = _embedded(tmp_path, num_items=300)
    table = artifacts.read_table(store, "item_embeddings")
    alike = pa.table({"item_id": table["item_id"], "embedding": [[0.5] * 8] * 300})
    artifacts.write_table(store, "item_embeddings", alike)
    build_sids.run(_config(tmp_path, quantiser=kind, level_sizes=sizes), Options())
    codes = artifacts.read_table(store, "item_sids")["codes"].to_pylist()
    assert len({tuple(row) for row in codes}) == 300 and len({tuple(row[:2]) for row in codes}) == 1
    facts = artifacts.require(store, "item_sids").facts
    assert (facts["raw_collision_rate"], facts["level_sizes"][:3]) == (1.0, [16, 16, 16] if sizes == "auto" else [256] * 3)


def test_images_change_the_sids_and_an_item_without_one_has_a_sid_too(tmp_path):
    store, vectors = _embedded(tmp_path)
    build_sids.run(_config(tmp_path), Options())
    without = artifacts.read_table(store, "item_sids")
    images = [None if index % 5 == 0 else row for index, row in enumerate(np.random.default_rng(3).normal(size=(60, 6)).tolist())]
    table = artifacts.read_table(store, "item_embeddings").drop_columns(["image_embedding"])
    artifacts.write_table(
        store, "item_embeddings", table.append_column("image_embedding", pa.array(images, pa.list_(pa.float32())))
    )
    build_sids.run(_config(tmp_path, image_weight=0.5), Options(force="all"))
    found = artifacts.read_table(store, "item_sids")
    assert len({tuple(codes) for codes in found["codes"].to_pylist()}) == 60 and not found.equals(without)
    second = _changed(store, tmp_path / "second", vectors, np.arange(60), num_new=0)
    artifacts.write_table(second, "item_embeddings", artifacts.read_table(store, "item_embeddings"))
    build_sids.run(_config(tmp_path / "second", image_weight=0.5, keep_from=str(tmp_path)), Options())
    assert (
        artifacts.require(second, "item_sids").facts["raw_collision_rate"]
        == (artifacts.require(store, "item_sids").facts["raw_collision_rate"])
    )


def test_behaviour_brings_items_together_that_users_visit_together(tmp_path):
    store, _ = _embedded(tmp_path)
    # the text knows four clusters of 15 neighbours; each user stays with every fourth item
    steps = np.random.default_rng(0).permuted(np.tile(np.arange(15), (60, 1)), axis=1)[:, :8]
    walks = [[f"item{user % 4 + 4 * step:03d}" for step in row] for user, row in enumerate(steps)]
    histories = {
        "example_id": [f"e{user}" for user in range(60)],
        "user_id": [f"u{user}" for user in range(60)],
        "split": ["train"] * 60,
        "history": [walk[:-1] for walk in walks],
        "target": [walk[-1] for walk in walks],
    }
    artifacts.write_table(store, "histories", pa.table(histories))
    build_sids.run(_config(tmp_path), Options())
    assert artifacts.require(store, "item_sids").facts["cointeraction_prefix_share"][0] < 0.4
    build_sids.run(_config(tmp_path, behaviour_weight=0.9), Options(force="all"))
    assert artifacts.require(store, "item_sids").facts["cointeraction_prefix_share"][0] > 0.8
    assert len({tuple(codes) for codes in artifacts.read_table(store, "item_sids")["codes"].to_pylist()}) == 60


def test_images_with_a_weight_that_nobody_embedded_are_an_error(tmp_path):
    _embedded(tmp_path)
    with pytest.raises(ValueError, match=r"sids\.image_weight: 0 of 60 items have a vector of this kind"):
        build_sids.run(_config(tmp_path, image_weight=0.5), Options())
