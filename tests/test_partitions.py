"""Tables that belong together have their rows in the same parts, and are read side by side without a look-up."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digr import artifacts, partitions
from digr.artifacts import Manifest, StaleArtifact, Store
from digr.partitions import Part, iter_aligned, iter_part, iter_users, part_numbers, parts_of, range_starts, read_part
from digr.tables import flat_interests, nest_interests
from tests.nested_interests import nest_rows

IDS = [f"{number:02d}" for number in range(11)]


@pytest.fixture
def store(tmp_path) -> Store:
    """Eleven items in parts of four, each with as many interests as its number's last digit modulo 3."""
    store, starts = Store(str(tmp_path)), range_starts(pa.array(IDS[::-1]), 4)
    artifacts.write_table(store, "items", pa.table({"item_id": IDS, "title": IDS}), starts)
    artifacts.commit(store, Manifest(name="items", rows=11, facts={partitions.STARTS: starts}))
    rows = [{"owner_id": item, "interest": f"{item} {number}"} for item in IDS for number in range(int(item) % 3)]
    artifacts.write_table(store, "interests", nest_rows("interests", rows, IDS), starts)
    artifacts.commit(store, Manifest(name="interests", rows=11))
    return store


def test_parts_hold_ranges_of_ids_and_say_where_they_begin(store):
    assert partitions.part_starts(store, "items") == ["", "04", "08"]
    assert [read_part(store, "items", part)["item_id"].to_pylist() for part in parts_of(store, "item")] == [
        IDS[:4],
        IDS[4:8],
        IDS[8:],
    ]
    assert part_numbers(["", "04", "08"], pa.array(["00", "04", "0", "07", "10", "zz", ""])).tolist() == [0, 1, 0, 1, 2, 2, 0]
    assert [path.split("interests/")[1] for path in artifacts.list_parts(store.uri("interests"))][:3] == [
        "item/part-00000.parquet",
        "item/part-00001.parquet",
        "item/part-00002.parquet",
    ]


@pytest.mark.parametrize("batch_rows", [1, 3, 4, 100])
def test_parts_are_streamed_in_even_batches_with_the_same_owners_of_every_table(store, batch_rows):
    seen = []
    for part in parts_of(store, "item"):
        sizes = [len(batch) for batch in iter_part(store, "items", part, batch_rows)]
        assert all(size == batch_rows for size in sizes[:-1]) and sum(sizes) == len(read_part(store, "items", part))
        for items, interests in iter_aligned(store, ("items", "interests"), part, batch_rows):
            assert items["item_id"].equals(interests["owner_id"])
            seen += items["item_id"].to_pylist()
    assert seen == IDS


def test_parts_written_in_small_row_groups_are_streamed_in_even_batches_too(tmp_path):
    store, schema = Store(str(tmp_path)), pa.schema([("item_id", pa.string()), ("title", pa.string())])
    with artifacts.open_part(f"{store.uri('items')}/{artifacts.part_name(0)}", schema) as writer:
        for number in range(7):
            writer.write_table(pa.table({"item_id": [f"{number}{row}" for row in range(3)], "title": ["x"] * 3}, schema=schema))
    assert [len(batch) for batch in iter_part(store, "items", Part("item", 0), 5)] == [5, 5, 5, 5, 1]


def test_tables_of_other_owners_are_not_read_side_by_side(store):
    artifacts.write_table(store, "interests", nest_rows("interests", [], IDS[:3]))
    with pytest.raises(ValueError, match=r"interests/item/part-00000\.parquet: not the same owners as in .*items/part-00000"):
        list(iter_aligned(store, ("items", "interests"), Part("item", 0), 10))
    with pytest.raises(ValueError, match=r"part-00000\.parquet: no such part of item_sids; run `digr sids build CONFIG"):
        read_part(store, "item_sids", Part("item", 0))


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 100])
def test_all_rows_of_a_user_come_in_one_table(tmp_path, batch_rows):
    store, users = Store(str(tmp_path)), ["a", *"bbbb", *"ccc", "d"]
    columns = {"user_id": users, "position": pa.array(range(9), pa.int32()), "item_id": ["i"] * 9}
    artifacts.write_table(store, "interactions", pa.table(columns))
    found = [table["user_id"].to_pylist() for table in iter_users(store, "interactions", Part("user", 0), batch_rows)]
    assert [user for table in found for user in table] == users
    assert all(set(left).isdisjoint(right) for left, right in itertools.pairwise(found))


def test_a_part_that_fails_half_way_is_not_there(tmp_path):
    uri = f"{tmp_path}/items/{artifacts.part_name(0)}"

    def write():
        with artifacts.open_part(uri, pa.schema([("item_id", pa.string())])) as writer:
            writer.write_table(pa.table({"item_id": ["a"]}))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write()
    assert list((tmp_path / "items").iterdir()) == []


OWNED = st.lists(st.lists(st.tuples(st.text(max_size=5), st.none() | st.floats(0, 1)), max_size=4), max_size=6)


@given(OWNED, st.integers(0, 6), st.integers(0, 6))
def test_nested_interests_made_flat_and_nested_again_are_the_same(owned, start, length):
    row = np.array([place for place, own in enumerate(owned) for _ in own], np.int64)
    flat = [entry for own in owned for entry in own]
    fields = {"interest": [name for name, _ in flat], "confidence": [value for _, value in flat]}
    fields |= {"miners": [["m"]] * len(flat), "consensus": [1.0] * len(flat)}
    ids = [str(place) for place in range(len(owned))]
    owners = {"owner": pa.array(["item"] * len(ids), pa.string()), "owner_id": pa.array(ids, pa.string())}
    table = nest_interests("interests", owners, row, fields).slice(start, length)
    found = flat_interests(table)
    assert [(one["owner_id"], one["rank"], one["interest"], one["confidence"]) for one in found.to_pylist()] == [
        (ids[place], rank, *entry)
        for place in range(len(owned))[start : start + length]
        for rank, entry in enumerate(owned[place])
    ]
    again = nest_interests(
        "interests",
        {name: table[name] for name in owners},
        np.asarray(found["row"]),
        {name: found[name] for name in fields},
    )
    assert again.equals(table)


def test_an_interest_without_its_words_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"column interests\.interest: 1 empty values, none allowed"):
        nest_rows("interests", [{"owner_id": "a", "interest": None}], ["a"])


@pytest.mark.parametrize(("name", "command"), [("interests", "interests mine"), ("interest_labels", "interests label")])
def test_a_table_of_an_older_schema_names_the_job_that_rebuilds_it_and_others_stay_readable(store, name, command):
    # interests once had a row each; all other tables of such a run are as they were
    for old in (name, "item_sids"):
        artifacts.begin(store, old)
        artifacts.commit(store, Manifest(name=old, rows=1, schema_version=1))
    with pytest.raises(StaleArtifact, match=rf"{name}: found version 1 .*expects 2; run `digr {command} CONFIG --force"):
        artifacts.read_table(store, name)
    assert artifacts.require(store, "items").schema_version == 2 and artifacts.require(store, "item_sids").schema_version == 1
