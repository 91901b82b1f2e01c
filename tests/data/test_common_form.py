"""A folder in the common form is read correctly, and its errors are reported before anything is built."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from digr.config import build_config
from digr.data.common_form import open_folder, source_files
from digr.data.preparing import PreparedTables, prepare_tables
from digr.tables import check_table
from tests.real_data import real_folder

ITEMS = {"item_id": ["b", "a", "c"], "title": ["Bee", "Ay", "Sea"]}
INTERACTIONS = {
    "user_id": ["u"] * 4,
    "item_id": ["a", "b", "c", "a"],
    "position": pa.array([0, 1, 2, 3], pa.int32()),
}
SPLITS = {
    "train": {"user_id": ["u"], "history": [["a"]], "target": ["b"]},
    "valid": {"user_id": ["u"], "history": [["a", "b"]], "target": ["c"]},
    "test": {"user_id": ["u"], "history": [["a", "b", "c"]], "target": ["a"]},
}


def write(folder: Path, items: dict = {}, interactions: dict = {}, **splits: dict) -> str:
    """Write a small folder in the common form, with some columns replaced (None drops one)."""

    def put(name: str, columns: dict) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({key: value for key, value in columns.items() if value is not None}), folder / name)

    put("items.parquet", ITEMS | items)
    put("interactions.parquet", INTERACTIONS | interactions)
    for split, columns in SPLITS.items():
        put(f"splits/{split}.parquet", columns | splits.get(split, {}))
    return str(folder)


def prepare(folder: str, official: bool = False, **data: object) -> PreparedTables:
    """Read a folder and prepare it in memory."""
    chosen = {"source": "parquet", "path": folder, "split": "official" if official else "leave_one_out"} | data
    config = build_config({"run": {"dir": "unused"}, "data": chosen}, "here").data
    return prepare_tables(open_folder(folder, official, config.strip_html), config)


def test_columns_are_mapped_and_other_columns_are_named(tmp_path):
    folder = write(
        tmp_path,
        {
            "description": ["", "good", None],
            "brand": [" ", None, "Cee"],
            "categories": [[], ["x", "y"], None],
            "price": pa.array([1.5, float("nan"), None], pa.float32()),
            "currency": ["EUR", "EUR", " "],
            "image_url": ["https://example.org/b.jpg", "https://example.org/a.jpg", ""],
            "image_file": ["", "images/a.jpg", ""],
            "sales_rank": [1, 2, 3],
        },
        {"timestamp": [1_500_000_000, None, None, 1_500_000_001], "rating": pa.array([5, None, 1, 2], pa.float32())},
    )
    source = prepare(folder, official=True)
    assert source.notes == [f"{folder}/items.parquet: columns that are not read: sales_rank"]
    a, b, c = source.items.to_pylist()
    assert a == {
        "item_id": "a",
        "title": "Ay",
        "description": "good",
        "brand": None,
        "categories": ["x", "y"],
        "price": None,
        "currency": "EUR",
        "image_uri": f"{tmp_path}/images/a.jpg",
    }
    assert (b["description"], b["brand"], b["categories"], b["price"]) == (None, None, None, 1.5)
    assert (b["currency"], c["currency"]) == ("EUR", None)
    assert (b["image_uri"], c["image_uri"], c["brand"]) == ("https://example.org/b.jpg", None, "Cee")
    check_table("interactions", source.interactions, "here")
    test = source.histories.filter(pc.equal(source.histories["split"], "test")).to_pylist()
    assert [(row["user_id"], row["history"], row["target"]) for row in test] == [("u", ["a", "b", "c"], "a")]
    assert source.interactions["timestamp"][0].as_py() == datetime(2017, 7, 14, 2, 40, tzinfo=UTC)
    assert source.interactions["timestamp"].null_count == 2


def test_millisecond_times_are_told_from_seconds_by_their_size(tmp_path):
    folder = write(tmp_path, interactions={"timestamp": [1_500_000_000_123] * 4})
    assert prepare(folder).interactions["timestamp"][0].as_py() == datetime(2017, 7, 14, 2, 40, 0, 123_000, UTC)


def test_the_official_splits_are_read_only_when_asked_for(tmp_path):
    folder = write(tmp_path)
    (tmp_path / "splits" / "valid.parquet").unlink()
    assert open_folder(folder, official=False).splits == {}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r'data\.path is empty; data\.source = "parquet" needs a folder with items\.parquet, interactions\.parquet'),
        ("nowhere", r"folder .*nowhere does not exist; expected there: items\.parquet, interactions\.parquet, splits/train"),
        (".", r"lacks splits/valid\.parquet; expected there: items\.parquet, .*splits/test\.parquet"),
    ],
)
def test_a_missing_folder_or_file_is_named_with_the_files_expected(tmp_path, path, message):
    write(tmp_path)
    (tmp_path / "splits" / "valid.parquet").unlink()
    with pytest.raises(ValueError, match=message):
        source_files(str(tmp_path / path) if path else "", official=True)


def test_a_relative_folder_that_is_missing_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"folder \.\./shared/data does not exist; .*working directory, which is {tmp_path}$"):
        source_files("../shared/data", official=False)


def test_a_file_that_is_not_parquet_is_an_error(tmp_path):
    folder = write(tmp_path)
    (tmp_path / "items.parquet").write_text("item_id,title\n")
    with pytest.raises(ValueError, match=r"items\.parquet: not a Parquet file"):
        prepare(folder)


NONE = pa.array([], pa.string())
EMPTY = {"user_id": NONE, "target": NONE, "history": pa.array([], pa.list_(pa.string()))}
BAD = [
    ({"items": {"title": None}}, r"items\.parquet: lacks column title; found item_id"),
    ({"items": {"item_id": [1, 2, 3]}}, r"items\.parquet: table items, column item_id: expected string, found int64"),
    ({"items": {"title": [1, 2, 3]}}, r"items\.parquet: column title: expected string, found int64"),
    ({"items": {"price": ["1", "2", "3"]}}, r"items\.parquet: table items, column price: expected double, found string"),
    ({"items": {"categories": ["x", "y", "z"]}}, r"column categories: expected list<string>, found string"),
    ({"items": {"categories": [["x", None], [], []]}}, r"column categories: 1 empty values inside lists"),
    ({"items": {"item_id": ["a", "b", "b"]}}, r"items\.parquet: table items: duplicate key item_id='b'"),
    ({"items": {"title": ["Bee", " ", "Sea"]}}, r"interactions\.parquet, item_id: 1 items have an empty title.*first: 'a'"),
    ({"items": {"item_id": ["a", "b", "d"]}}, r"interactions\.parquet, item_id: 1 items are not in items\.parquet \(first: 'c'"),
    ({"interactions": {"position": ["0", "1", "2", "3"]}}, r"column position: expected int32, found string"),
    ({"interactions": {"position": [0, 1, 2, 2]}}, r"table interactions: duplicate key user_id='u', position=2"),
    ({"interactions": {"user_id": ["u", None, "u", "u"]}}, r"column user_id: 1 empty values, none allowed"),
    ({"interactions": {"timestamp": ["x"] * 4}}, r"column timestamp: expected timestamp\[ms, tz=UTC\], found string"),
    ({"interactions": {"timestamp": [-1, 5, 6, 7]}}, r"timestamp: expected seconds or milliseconds since 1970, found -1"),
    ({"interactions": {"timestamp": [1_500_000_000, 1_500_000_000_000, None, None]}}, r"mixes seconds and milliseconds"),
    ({"train": {"target": ["zzz"]}}, r"splits/train\.parquet, target: 1 items are not in items\.parquet \(first: 'zzz'\)"),
    ({"test": {"history": [["x1", "x2", "a"]]}}, r"splits/test\.parquet, history: 2 items are not in items\.parquet"),
    ({"test": {"history": ["a b c"]}}, r"splits/test\.parquet: column history: expected list<string>, found string"),
    ({"test": {"history": [[1, 2]]}}, r"column history: expected list<string>, found list<"),
    ({"valid": {"history": [["a", None]]}}, r"splits/valid\.parquet: column history: empty values, none allowed"),
    ({"valid": {"target": None}}, r"splits/valid\.parquet: lacks column target; found user_id, history"),
    ({"valid": EMPTY}, r"splits/valid\.parquet: the split is empty"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_wrong_table_is_an_error_that_names_the_file_and_what_is_wrong(tmp_path, changes, message):
    folder = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        prepare(folder, official=True)


def test_an_item_without_title_or_interaction_is_left_out_and_counted(tmp_path):
    folder = write(tmp_path, {"item_id": ["a", "b", "c", "z"], "title": ["Ay", "Bee", "Sea", ""]})
    source = prepare(folder)
    assert source.items["item_id"].to_pylist() == ["a", "b", "c"]
    assert source.rejected["items"] == {"item without title or interaction": 1}


def test_a_real_catalogue_with_posters_points_to_its_image_files():
    source = prepare(real_folder("ml100k_posters"), official=True)
    uris = [uri for uri in source.items["image_uri"].to_pylist() if uri]
    assert len(uris) == 1_663 and all(Path(uri).is_file() for uri in uris)
