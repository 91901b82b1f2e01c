"""The report on semantic IDs agrees with the tables, and has a bounded size."""

from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.evaluation import sid_charts, sid_facts
from digr.sids.assignment import sid_table
from tests.nested_interests import nest_rows

CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 2], [0, 1, 1], [2, 0, 0], [1, 1, 1]], np.int32)
IDS = list("abcdefg")


MINED = [
    {"owner_id": "a", "interest": "camping", "confidence": 0.5},
    {"owner_id": "b", "interest": "camping", "confidence": 0.5},
    {"owner_id": "b", "interest": "night walks"},
    {"owner_id": "f", "interest": "baking", "confidence": 0.9},
]


def _store(root, codes=CODES, ids=IDS, **facts):
    store = Store(str(root))
    rng = np.random.default_rng(0)
    tables = {
        "items": pa.table({"item_id": ids, "title": [f"title <{item}>" for item in ids]}),
        "item_sids": sid_table(pa.array(ids), codes),
        "item_embeddings": pa.table({"item_id": ids, "embedding": list(rng.normal(size=(len(ids), 4)).astype(np.float32))}),
        "interests": nest_rows("interests", [row for row in MINED if row["owner_id"] in ids], ids),
    }
    sizes = [3, 2, 3, 2][: codes.shape[1]]
    for name, table in tables.items():
        artifacts.write_table(store, name, table)
        extra = {"level_sizes": sizes, "usage_rate": [1.0] * 3, **facts} if name == "item_sids" else {}
        artifacts.commit(store, Manifest(name=name, rows=len(table), facts=extra))
    return store


def test_prefixes_have_their_items_interests_and_titles(tmp_path):
    found = sid_facts.sid_overview(_store(tmp_path), np.random.default_rng(0))
    sizes = {node["id"]: node["num_items"] for node in found.nodes}
    assert sizes == {"0": 5, "1": 1, "2": 1, "0-0": 2, "0-1": 3}
    assert {node["id"]: node["parent"] for node in found.nodes if node["parent"]} == {"0-0": "0", "0-1": "0"}
    by_id = {node["id"]: node for node in found.nodes}
    assert by_id["0-0"]["interests"] == ["camping", "night walks"] and by_id["2"]["interests"] == ["baking"]
    assert sorted(by_id["0-0"]["titles"]) == ["title <a>", "title <b>"]
    assert [counts.tolist() for counts in found.code_counts] == [[5, 1, 1], [3, 4], [3, 3, 1]]
    assert found.num_items == 7


def test_only_the_largest_prefixes_are_kept_and_none_without_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(sid_facts, "MAX_NODES", 2)
    codes = np.array([*list(product(range(3), range(2), range(3)))[:-1], (0, 0, 0)], np.int32)
    found = sid_facts.sid_overview(
        _store(tmp_path, codes=codes, ids=[f"i{index:02d}" for index in range(18)]), np.random.default_rng(0)
    )
    assert [(node["id"], node["num_items"]) for node in found.nodes] == [
        ("0", 7),
        ("1", 6),
        ("0-0", 4),
        ("0-1", 3),
        ("0-0-0", 2),
    ]


def test_the_suffix_level_is_no_level_of_the_tree(tmp_path):
    codes = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, -1]], np.int32)
    found = sid_facts.sid_overview(_store(tmp_path, codes=codes, ids=["a", "b", "f"]), np.random.default_rng(0))
    assert [node["id"] for node in found.nodes] == ["0", "1", "0-0", "0-0-0"] and len(found.code_counts) == 3


def test_collided_items_are_named_with_the_sids_they_got(tmp_path):
    groups = [{"codes": [0, 1, 0], "num_items": 9, "item_ids": ["c", "d"]}]
    assert sid_facts.collisions(_store(tmp_path, largest_collisions=groups)) == [
        {
            "nearest": [0, 1, 0],
            "num_items": 9,
            "items": [{"title": "title <c>", "sid": [0, 1, 0]}, {"title": "title <d>", "sid": [0, 1, 2]}],
        }
    ]
    assert sid_facts.collisions(Store(str(tmp_path / "none"))) is None


def test_a_map_of_too_few_items_is_none_and_of_enough_has_a_point_for_each(tmp_path):
    assert sid_facts.item_map(_store(tmp_path / "few"), seed=0) is None
    codes = np.tile(CODES, (3, 1))
    ids = [f"i{index:02d}" for index in range(21)]
    found = sid_facts.item_map(_store(tmp_path / "enough", codes=codes, ids=ids), seed=0)
    assert found["points"].shape == (21, 2) and np.isfinite(found["points"]).all()
    assert found["first"] == codes[:, 0].tolist() and found["sids"][3] == "0-1-2"


@pytest.mark.parametrize("text", ["<script>alert(1)</script>"])
def test_charts_escape_what_the_data_says(text):
    node = {"id": "0", "parent": "", "num_items": 3, "interests": [text], "titles": [text]}
    place = {"points": np.zeros((1, 2)), "first": [0], "titles": [text], "sids": ["0-1"]}
    for chart in (sid_charts.prefix_tree([node], 3), sid_charts.item_points(place)):
        assert text not in chart and "alert(1)" in chart


def test_a_level_of_many_codes_is_drawn_with_a_bounded_number_of_bars():
    chart = sid_charts.code_bars([np.arange(10_000)])
    assert chart.count("level 1: 100.0% of 10000 codes") == 1 and len(chart) < 40_000
