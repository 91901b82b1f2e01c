"""The data job writes checked tables, counts what it leaves out, and leaves nothing where it fails."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, build_config
from digr.data.importing.writing import import_data
from digr.images.showing import image_rules
from jobs import prepare_data
from jobs.runtime.session import Options
from tests.data.test_common_form import write
from tests.real_data import real_folder

SHOP = {"num_items": 40, "num_users": 60, "num_interests": 4, "image_size": 16}


FEW_ITEMS = {
    "sids": {"level_sizes": [2, 2]},
    "grpo": {"enabled": False},
    "decoding": {"k": 2},
    "evaluation": {"ks": [1, 2]},
    "train": {"num_workers": 1},
}
"""Choices that a catalogue of two items can bear."""


def _config(tmp_path: Path, seed: int = 0, **data) -> Config:
    return build_config({"run": {"dir": str(tmp_path / "run"), "seed": seed}, "data": data} | FEW_ITEMS, "here")


def _run(tmp_path: Path, options: Options = Options(), **data) -> dict:
    return prepare_data.run(_config(tmp_path, **data), options)


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


def test_images_of_imported_files_are_found_without_a_setting_and_others_with_one(tmp_path, capsys):
    """Any path of this disk was read, and would have been sent to whoever answers for a model."""
    for folder in ("raw", "elsewhere"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    titles = f"item_id,title,image\na,Pan,a.png\nb,Pot,{tmp_path}/elsewhere/a.png\nc,Cup,https://shop.example/c.png\n"
    (tmp_path / "raw" / "items.csv").write_text(titles)
    (tmp_path / "raw" / "log.csv").write_text(
        "user_id,item_id,position\n" + "".join(f"u,{i},{n}\n" for n, i in enumerate("abcab"))
    )
    import_data([str(tmp_path / "raw")], str(tmp_path / "data"), report=lambda line: None)
    tree = {"data": {"source": "parquet", "path": str(tmp_path / "data")}} | FEW_ITEMS
    found = {}
    for name, folders in {"closed": [], "open": [str(tmp_path / "elsewhere")]}.items():
        config = build_config(tree | {"run": {"dir": str(tmp_path / name)}, "images": {"folders": folders}}, "here")
        prepare_data.run(config, Options())
        store = Store(str(tmp_path / name))
        facts = artifacts.require(store, "items").facts
        found[name] = {key: facts[key] for key in facts if key.startswith("num_") and key.endswith(("images", "uris"))}
        assert image_rules(config, store).folders == (store.root, str(tmp_path / "data"), str(tmp_path / "raw"))
    assert found["closed"] == {"num_image_uris": 3, "num_images": 1, "num_remote_images": 1, "num_refused_images": 1}
    assert found["open"] == {"num_image_uris": 3, "num_images": 2, "num_remote_images": 1}
    told = capsys.readouterr().out
    assert f"1 of 3 images are not read; the first: {tmp_path}/elsewhere/a.png: in no folder that is read" in told


def test_a_second_run_does_nothing_and_another_seed_is_refused(tmp_path):
    _run(tmp_path, synthetic=SHOP)
    assert _run(tmp_path, synthetic=SHOP)["status"] == "skipped"
    other = _config(tmp_path, seed=1, synthetic=SHOP)
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
            "official splits cannot have a core, found core = 5",
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


def test_what_a_later_job_would_fail_of_fails_here(tmp_path):
    folder = write(tmp_path / "source")
    few = {name: value for name, value in FEW_ITEMS.items() if name != "sids"}
    tree = {"run": {"dir": str(tmp_path / "run")}, "data": {"source": "parquet", "path": folder, "split": "official"}} | few
    wrong = build_config(tree | {"sids": {"level_sizes": [256]}}, "here")
    with pytest.raises(ValueError, match=r'a level has 256 codes but is fitted on 3 items; set sids\.level_sizes = "auto"'):
        prepare_data.run(wrong, Options())
    assert artifacts.read_manifest(Store(str(tmp_path / "run")), "items") is None


def test_losses_are_printed_and_a_core_that_keeps_little_is_warned_of(tmp_path, capsys):
    words = ["ab", "abab", "baba"] + [f"{letter}" for letter in "cdefghijklmnopqrstuvwxyz" * 4]
    log = [(f"u{at:03d}", item, place) for at, word in enumerate(words) for place, item in enumerate(word)]
    users, items, places = (list(column) for column in zip(*log, strict=True))
    letters = sorted(set(items))
    source = write(
        tmp_path / "source",
        items={"item_id": letters, "title": letters},
        interactions={"user_id": users, "item_id": items, "position": places},
    )
    _run(tmp_path, source="parquet", path=source, core=2)
    printed = capsys.readouterr().out
    assert "24 of 26 items left out: item outside the 2-core" in printed
    assert "96 of 106 interactions left out: interaction outside the 2-core" in printed
    assert "1 of 3 users dropped: fewer than 3 interactions" in printed
    assert "WARNING: data.core = 2 keeps 10 of 106 interactions; a smaller core keeps more" in printed
