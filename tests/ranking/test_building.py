"""The arrays of a view: phrases, groups and vectors of families, and the search for neighbours."""

import faiss
import numpy as np
import pyarrow as pa
import pytest

from digr import artifacts
from digr.ranking import building
from digr.ranking.building import FamilyFiles
from digr.ranking.grouping import group_all
from digr.ranking.groups import InterestGroups
from digr.ranking.neighbours import Neighbours
from digr.ranking.phrases import PHRASES, text_pieces, trusted_phrases
from digr.ranking.views import Family, load_arrays, load_view, save_arrays
from digr.tables import conform, nest_interests
from tests.ranking.tiny_view import GRAINS, random_view, save_view

VECTORS = {"trout": [1, 0, 0], "fly fishing": [0.8, 0.6, 0], "bread": [0, 0, 1]}
ROWS = [[(0, "trout", 1.0), (0, "bread", 0.5), (1, "trout", 1.0)], [(0, "fly fishing", 0.25)]]
"""Phrases of two parts, the first of three items and the second of one."""
FIRSTS = np.array([0, 3, 4])


def _write(uri: str, table: pa.Table) -> None:
    with artifacts.open_part(uri, table.schema) as writer:
        writer.write_table(table)


@pytest.fixture
def files(tmp_path):
    found = FamilyFiles(str(tmp_path / "work"))
    for number, rows in enumerate(ROWS):
        columns = {name: [row[place] for row in rows] for place, name in enumerate(PHRASES.names)}
        _write(f"{found.rows}/{artifacts.part_name(number)}", pa.table(columns).cast(PHRASES))
    assert building.write_phrases(found) == 1
    names = artifacts.open_parts(found.phrases).to_table()["interest"].to_pylist()
    _write(f"{found.vectors}/{artifacts.part_name(0)}", pa.table({"vector": [VECTORS[name] for name in names]}))
    return found


def test_the_phrases_of_an_item_are_its_trusted_interests_in_small_letters():
    owners = {"owner": ["item", "item"], "owner_id": ["a", "b"]}
    given = {
        "interest": ["Trout", "Bread", "trout"],
        "confidence": [0.5, None, 0.25],
        "miners": [["m"]] * 3,
        "consensus": [1.0] * 3,
    }
    interests = nest_interests("interests", owners, np.array([0, 0, 1]), given)
    said = {"interest": given["interest"], "probability": [1.0] * 3, "label": [1, 0, 1], "labelers": [["classifier"]] * 3}
    labels = nest_interests("interest_labels", owners | {"quality": [1.0, 1.0]}, np.array([0, 0, 1]), said)
    assert trusted_phrases(interests, labels).to_pylist() == [
        {"row": 0, "interest": "trout", "weight": 0.5},
        {"row": 1, "interest": "trout", "weight": 0.25},
    ]


def test_the_pieces_of_a_text_are_its_title_and_its_first_whole_sentences():
    text = "Catches big trout. Yes! Made of carbon fibre; fits a small bag. Ships now to you. One more of these. And one more."
    columns = {"item_id": ["a", "b"], "title": ["Fly Rod", "Bare"], "description": [text, None]}
    columns |= {name: pa.nulls(2) for name in ("brand", "categories", "price", "image_uri")}
    found = text_pieces(conform("items", pa.table(columns), "test")).to_pylist()
    assert [row["interest"] for row in found] == [
        "fly rod",
        "catches big trout.",
        "made of carbon fibre;",
        "fits a small bag.",
        "ships now to you.",
        "bare",
    ]
    assert [row["row"] for row in found] == [0] * 5 + [1]


def test_counting_phrases_in_pieces_is_counting_them_at_once(files, monkeypatch):
    whole = artifacts.open_parts(files.phrases).to_table()
    monkeypatch.setattr(building, "MERGED_ROWS", 0)
    building.write_phrases(files)
    assert artifacts.open_parts(files.phrases).to_table().equals(whole)


def test_an_items_groups_and_vector_are_those_of_its_phrases(files, tmp_path):
    _, groups = group_all(files, (0.7,), max_phrases=100, seed=0)
    (found,) = building.family_groups(building.read_item_phrases(files, FIRSTS), groups, 4)
    assert found.start.tolist() == [0, 2, 3, 3, 4]
    assert sorted(found.share[:2].tolist()) == pytest.approx([1 / 3, 2 / 3])
    building.write_family_vectors(files, building.read_item_phrases(files, FIRSTS), 4, tmp_path / "vectors.npy")
    mean = np.array([[1, 0, 0.5], [1, 0, 0], [0, 0, 0], [0.2, 0.15, 0]])
    unit = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
    centred = unit - unit.sum(0) / 3
    centred[2] = 0
    expected = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    assert np.load(tmp_path / "vectors.npy").astype(np.float64) == pytest.approx(expected, abs=2e-3)
    assert [path.name for path in tmp_path.glob("*.phrases")] == []


def test_a_catalogue_without_a_phrase_has_empty_groups(tmp_path):
    files = FamilyFiles(str(tmp_path / "work"))
    _write(f"{files.rows}/{artifacts.part_name(0)}", PHRASES.empty_table())
    building.write_phrases(files)
    _write(f"{files.vectors}/{artifacts.part_name(0)}", pa.table({"vector": pa.array([], pa.list_(pa.float32()))}))
    table, groups = group_all(files, (0.7, 0.45), max_phrases=100, seed=0)
    assert len(table) == 0
    phrases = building.read_item_phrases(files, np.array([0, 2]))
    found = building.family_groups(phrases, groups, 2)
    assert [each.start.tolist() for each in found] == [[0, 0, 0]] * 2
    building.write_family_vectors(files, phrases, 2, tmp_path / "vectors.npy")
    assert np.load(tmp_path / "vectors.npy").shape[0] == 2


@pytest.mark.parametrize("exact_items", [10, 10_000])
def test_neighbours_are_the_nearest_of_all_others(monkeypatch, tmp_path, exact_items):
    monkeypatch.setattr(building, "EXACT_ITEMS", exact_items)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = 0
    faiss.write_index(building.build_search(vectors.astype(np.float16), 0), str(tmp_path / "index"))
    index = building.map_search(tmp_path / "index")
    found = building.nearest(index, vectors.astype(np.float16), 5, 9, 10)
    cosine = vectors[5:9] @ vectors.T
    cosine[np.arange(4), np.arange(5, 9)] = -1
    hits = []
    for row in range(4):
        mine = found.item[found.start[row] : found.start[row + 1]].tolist()
        assert row + 5 not in mine
        if row == 2:  # the zero vector
            assert mine == []
        else:
            hits.append(len(set(mine) & set(np.argsort(-cosine[row])[:10].tolist())))
    assert all(number >= (9 if exact_items > 600 else 5) for number in hits)


def test_a_view_comes_back_from_its_files(tmp_path):
    view = random_view(0)
    save_view(view, tmp_path)
    found = load_view(tmp_path, "before", ("interests",), GRAINS)
    assert _flat(found) == _flat(view)


def test_a_shuffled_family_gives_every_item_the_phrases_of_another(tmp_path):
    family = random_view(0).families["interests"]
    save_arrays(tmp_path, {"vectors": family.vectors, "neighbours": family.neighbours, "groups": family.groups}, "interests")
    made = building.shuffle_family(tmp_path, "interests", GRAINS, 3)
    order = np.random.default_rng(3).permutation(12)
    assert np.array_equal(made["vectors"], family.vectors[order])
    save_arrays(tmp_path, made["neighbours"], "shuffled.neighbours")
    save_arrays(tmp_path, made["groups"], "shuffled.groups")
    lists = load_arrays(Neighbours, tmp_path, "shuffled.neighbours")
    groups = load_arrays(InterestGroups, tmp_path, "shuffled.groups.0")
    for item in range(12):
        mine, other = slice(lists.start[item], lists.start[item + 1]), order[item]
        theirs = slice(family.neighbours.start[other], family.neighbours.start[other + 1])
        assert order[lists.item[mine]].tolist() == family.neighbours.item[theirs].tolist()
        own = family.groups[0]
        assert groups.group[groups.start[item] : groups.start[item + 1]].tolist() == (
            own.group[own.start[other] : own.start[other + 1]].tolist()
        )


def _flat(tree) -> dict:
    if isinstance(tree, np.ndarray):
        return {"": tree.tolist()}
    items = tree._asdict() if isinstance(tree, tuple) and hasattr(tree, "_asdict") else tree
    items = items if isinstance(items, dict) else dict(enumerate(items))
    return {f"{key}.{name}": value for key, inner in items.items() for name, value in _flat(inner).items()}


def test_families_have_the_fields_that_are_saved():
    assert Family._fields == ("vectors", "neighbours", "groups", "lifts", "steps")
