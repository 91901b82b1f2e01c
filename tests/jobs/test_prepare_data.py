"""The data job writes checked tables, counts what it leaves out, and leaves nothing where it fails."""

import json
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config, build_config
from digr.data.importing.writing import import_data
from digr.data.prepared_parts import PreparedParts
from digr.images.showing import image_rules
from jobs import prepare_data
from jobs.runtime.session import Options
from tests.data.test_common_form import write
from tests.real_data import real_folder

ROOT = Path(__file__).resolve().parents[2]
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


def _many_parts(tmp_path: Path, split: str) -> dict:
    """Return choices of a source of 15 parts of users and 4 of items, in which no user's rows are together."""
    rng = np.random.default_rng(0)
    users, items = rng.permutation(np.arange(480) % 60), rng.integers(20, size=480)
    columns: dict = {"user_id": [f"u{user:02d}" for user in users], "item_id": [f"i{item:02d}" for item in items]}
    lists = defaultdict[str, list[str]](list)
    places = []
    for user, item in zip(columns["user_id"], columns["item_id"], strict=True):
        places.append(len(lists[user]))
        lists[user].append(item)
    if split == "official":
        columns["position"] = places
    else:
        columns["timestamp"] = pa.array(rng.integers(15 * 10**11, 16 * 10**11, 480), pa.timestamp("ms", tz="UTC"))
    (tmp_path / "source" / "splits").mkdir(parents=True)
    catalogue = {"item_id": [f"i{item:02d}" for item in range(20)], "title": [f"T{item} <b>x</b>" for item in range(20)]}
    tables = {"items": catalogue, "interactions": columns}
    for back, name in enumerate(("test", "valid", "train"), 1):
        rows = [(user, listed[:-back], listed[-back]) for user, listed in sorted(lists.items())]
        tables[f"splits/{name}"] = dict(zip(("user_id", "history", "target"), map(list, zip(*rows, strict=True)), strict=True))
    for name, table in tables.items():
        pq.write_table(pa.table(table), tmp_path / "source" / f"{name}.parquet")
    parts = {"users_per_part": 4, "items_per_part": 5, "core": 0 if split == "official" else 2}
    return {"source": "parquet", "path": str(tmp_path / "source"), "split": split} | parts


def _whole(run: Path) -> dict:
    """Return the bytes of all parts and all that the manifests say of them."""
    found: dict = {str(part.relative_to(run)): part.read_bytes() for part in run.rglob("part-*.parquet")}
    for name in prepare_data.OUTPUTS:
        found[name] = artifacts.require(Store(str(run)), name).model_dump(exclude={"seconds"})
    return found


@pytest.mark.parametrize("split", ["temporal", "leave_one_out", "official"])
def test_a_build_killed_after_any_part_goes_on_to_the_same_files(tmp_path, monkeypatch, split):
    data = _many_parts(tmp_path, split)
    config = lambda name: build_config({"run": {"dir": str(tmp_path / name)}, "data": data} | FEW_ITEMS, "here")  # noqa: E731
    prepare_data.run(config("undisturbed"), Options())
    expected = _whole(tmp_path / "undisturbed")
    assert sum(name.endswith(".parquet") for name in expected) == 4 + 15 + 15
    write = PreparedParts._write
    monkeypatch.setattr("digr.data.prepared_parts.COUNTED_PARTS", 3)
    calls = Counter[str]()

    def killed(self, name, number, table):
        if calls["left"] == 0:
            raise KeyboardInterrupt
        calls["left"] -= 1
        calls[name] += 1
        write(self, name, number, table)

    monkeypatch.setattr(PreparedParts, "_write", killed)
    for parts in (2, 11, 33):
        calls.clear()
        calls["left"] = parts
        with pytest.raises(KeyboardInterrupt):
            prepare_data.run(config(f"after{parts}"), Options())
        finished = calls["histories"]
        assert artifacts.read_manifest(Store(str(tmp_path / f"after{parts}")), "items") is None
        calls.clear()
        calls["left"] = -1
        prepare_data.run(config(f"after{parts}"), Options())
        # finished parts are not made again, but for those after the last count
        assert calls["items"] == max(4 - parts, 0)
        assert calls["histories"] == 15 - finished // 3 * 3
        assert _whole(tmp_path / f"after{parts}") == expected
        assert [path.name for path in (tmp_path / f"after{parts}").glob("items.work-*")] == []


KILLED = """
import os, signal, sys
from digr.config import build_config
from digr.data.prepared_parts import PreparedParts
from jobs import prepare_data
from jobs.runtime.session import Options
write = PreparedParts._write
def last(self, name, number, table):
    write(self, name, number, table)
    if (name, number) == ("histories", 12):
        os.kill(os.getpid(), signal.SIGKILL)
PreparedParts._write = last
prepare_data.run(build_config(__import__("json").loads(sys.argv[1]), "here"), Options())
"""


def test_a_killed_process_leaves_its_database_and_its_parts(tmp_path, capsys):
    data = _many_parts(tmp_path, "temporal")
    tree = {"run": {"dir": str(tmp_path / "killed")}, "data": data} | FEW_ITEMS
    (tmp_path / "killed" / "items.work-0123456789ab").mkdir(parents=True)  # of a killed build of other choices
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(tree)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [work] = (tmp_path / "killed").glob("items.work-*")
    old = {path: path.stat().st_ino for path in work.rglob("part-*.parquet")}
    assert len(old) == 4 + 13 + 13
    Path(f"{data['path']}/items.parquet").touch()
    prepare_data.run(build_config(tree, "here"), Options())
    assert (
        "kept from a killed build: 4 parts of items, 10 parts of interactions, 10 parts of histories" in capsys.readouterr().out
    )
    kept = {path.stat().st_ino for path in (tmp_path / "killed").rglob("part-*.parquet")}
    assert len(kept & set(old.values())) >= 4 + 10 + 10
    prepare_data.run(build_config(tree | {"run": {"dir": str(tmp_path / "undisturbed")}}, "here"), Options())
    assert _whole(tmp_path / "killed") == _whole(tmp_path / "undisturbed")


def test_data_that_are_refused_leave_no_database_behind(tmp_path):
    folder = write(tmp_path / "source", interactions={"user_id": ["u"], "item_id": ["zzz"], "position": [0]})
    with pytest.raises(ValueError, match="1 items are not in"):
        _run(tmp_path, source="parquet", path=folder)
    assert not list((tmp_path / "run").glob("*.work-*"))
