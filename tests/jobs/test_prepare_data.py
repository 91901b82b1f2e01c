"""The data job writes checked tables, counts what it leaves out, and leaves nothing where it fails."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Store
from digr.config import build_config
from jobs import prepare_data
from jobs.runtime.session import Options
from tests.data.test_common_form import write
from tests.real_data import real_folder

SHOP = {"num_items": 40, "num_users": 60, "num_interests": 4, "image_size": 16}


def _run(tmp_path: Path, options: Options = Options(), **data) -> dict:
    return prepare_data.run(build_config({"run": {"dir": str(tmp_path / "run")}, "data": data}, "here"), options)


def test_the_embedded_shop_becomes_three_artifacts_and_its_images(tmp_path):
    assert _run(tmp_path, synthetic=SHOP, max_history=20)["status"] == "built"
    store = Store(str(tmp_path / "run"))
    items = artifacts.read_table(store, "items")
    assert items["item_id"].to_pylist() == sorted(items["item_id"].to_pylist())
    for uri in items["image_uri"].to_pylist():
        assert Image.open(uri).size == (16, 16)
    manifest = artifacts.require(store, "items")
    assert (manifest.facts["num_image_uris"], "num_remote_images" in manifest.facts) == (40, False)
    assert (manifest.rows, manifest.facts["num_images"], len(manifest.facts["planted_interests"])) == (40, 40, 4)
    assert artifacts.require(store, "histories").facts["split_rows"] == {"train": 60, "valid": 60, "test": 60}
    assert artifacts.read_table(store, "histories").num_rows == 180
    # the truth is for people who read the manifest; no table carries it
    assert not any("interest" in name for name in items.column_names)


def test_a_second_run_does_nothing_and_another_seed_is_refused(tmp_path):
    _run(tmp_path, synthetic=SHOP)
    assert _run(tmp_path, synthetic=SHOP)["status"] == "skipped"
    other = build_config({"run": {"dir": str(tmp_path / "run"), "seed": 1}, "data": {"synthetic": SHOP}}, "here")
    with pytest.raises(ValueError, match=r"different: seed\)"):
        prepare_data.run(other, Options())


def test_a_changed_source_file_makes_the_artifacts_stale(tmp_path):
    folder = write(tmp_path / "source")
    _run(tmp_path, source="parquet", path=folder, split="official")
    table = pq.read_table(f"{folder}/items.parquet")
    pq.write_table(table.append_column("extra", table["title"]), f"{folder}/items.parquet")
    with pytest.raises(ValueError, match=r"different: input file items\.parquet\)"):
        _run(tmp_path, source="parquet", path=folder, split="official")


def test_what_the_core_and_short_users_take_away_is_counted(tmp_path):
    people = {"user_id": ["u"] * 4 + ["v"] * 4 + ["w"], "item_id": [*"abab", *"baba", "c"], "position": [*range(4), *range(4), 0]}
    _run(tmp_path, source="parquet", path=write(tmp_path / "source", interactions=people), core=2)
    store = Store(str(tmp_path / "run"))
    assert artifacts.require(store, "items").rejected == {"item outside the 2-core": 1}
    assert artifacts.require(store, "interactions").rejected == {"interaction outside the 2-core": 1}
    assert artifacts.read_table(store, "items")["item_id"].to_pylist() == ["a", "b"]


def test_a_wrong_source_leaves_no_artifact(tmp_path):
    folder = write(tmp_path / "source", test={"target": ["zzz"]})
    with pytest.raises(ValueError, match="1 items are not in"):
        _run(tmp_path, source="parquet", path=folder, split="official")
    store = Store(str(tmp_path / "run"))
    assert [artifacts.read_manifest(store, name) for name in prepare_data.OUTPUTS] == [None, None, None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": "official"}, "the embedded shop has no official splits"),
        (
            {"source": "parquet", "path": "x", "split": "official", "core": 5},
            "official splits are taken as they are, found core = 5",
        ),
        ({"source": "parquet"}, "data.path is empty"),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        _run(tmp_path, **data)


def test_the_official_industrial_split_is_prepared_whole(tmp_path):
    _run(tmp_path, source="parquet", path=real_folder("amazon18_industrial_minionerec"), split="official")
    store = Store(str(tmp_path / "run"))
    sizes = {"train": 36_259, "valid": 4_532, "test": 4_533}
    assert artifacts.require(store, "histories").facts["split_rows"] == sizes
    assert artifacts.require(store, "items").rows == 3_686
