"""Rows left out are counted and reported, interactions are in time order, and the number of parts changes nothing."""

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.data import common_form
from digr.data.preparing import PreparedTables
from digr.tables import SPLITS
from tests.data.test_common_form import prepare

SHOP = {"item_id": list("abcdef"), "title": ["A", "B", "C", "D", "E", "F"]}


def _log(*users: str, **columns: Any) -> dict[str, Any]:
    """One user per word, one item per letter, in rows one after the other, without positions."""
    return {"user_id": [f"u{at}" for at, word in enumerate(users) for _ in word], "item_id": list("".join(users))} | columns


def _write(folder: Path, items: dict[str, Any], interactions: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    return str(folder)


def _sequences(made: PreparedTables) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in made.interactions.to_pylist():
        found[row["user_id"]] = found.get(row["user_id"], "") + row["item_id"]
    return found


def test_without_positions_times_order_a_users_interactions_and_rows_those_of_one_time(tmp_path):
    log = _log("abcd", "defa", timestamp=[30, 10, 20, 20, 4, 3, 2, 1])
    made = prepare(_write(tmp_path, SHOP, log))
    assert _sequences(made) == {"u0": "bcda", "u1": "afed"}
    assert made.interactions["position"].to_pylist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert made.facts["equal_timestamp_rate"] == pytest.approx(1 / 6, abs=1e-6)


def test_interactions_of_one_time_are_drawn_by_chance_where_asked_for(tmp_path):
    folder = _write(tmp_path, SHOP, _log(*["abcdef"] * 40, timestamp=[7] * 240))
    orders = [_sequences(prepare(folder, ties=ties)) for ties in ("file_order", "random", "random")]
    assert set(orders[0].values()) == {"abcdef"}
    assert orders[1] == orders[2] and len(set(orders[1].values())) > 30
    assert all(sorted(word) == list("abcdef") for word in orders[1].values())
    firsts = Counter(word[0] for word in orders[1].values())
    assert min(firsts[item] for item in "abcdef") >= 1
    with pytest.raises(ValueError, match=r'200 interactions have the time of another one of their user; data\.ties = "error"'):
        prepare(folder, ties="error")


def test_without_positions_and_times_a_loud_line_says_that_rows_are_taken_for_the_order(tmp_path):
    made = prepare(_write(tmp_path, SHOP, _log("abcd", "fedc")))
    assert _sequences(made) == {"u0": "abcd", "u1": "fedc"}
    assert made.facts["equal_timestamp_rate"] is None, "undated interactions have no ties"
    assert len(made.notes) == 1 and "neither position nor timestamp" in made.notes[0]
    assert "metrics of the next item mean nothing" in made.notes[0] and made.notes[0].startswith("WARNING")


def test_a_list_that_is_sorted_by_play_counts_is_warned_of(tmp_path):
    counts = {"rating": pa.array([60.0, 50.0, 40.0, 30.0, 20.0, 10.0] * 40)}
    made = prepare(_write(tmp_path / "counts", SHOP, _log(*["abcdef"] * 40, **counts)))
    assert "ratings fall 200 times and rise 0 times" in made.notes[1]
    timed = prepare(_write(tmp_path / "timed", SHOP, _log(*["abcdef"] * 40, timestamp=list(range(240)), **counts)))
    assert timed.notes == []


def test_an_interaction_without_time_or_position_has_no_place(tmp_path):
    folder = _write(tmp_path, SHOP, _log("abcd", timestamp=[1, None, 3, 4]))
    with pytest.raises(ValueError, match=r"1 of 4 interactions have no timestamp, and there is no column position to order them"):
        prepare(folder)


def test_times_that_fall_across_a_missing_one_contradict_the_positions(tmp_path):
    log = _log("abcd", position=pa.array([0, 1, 2, 3]), timestamp=[50, None, 40, 60])
    with pytest.raises(ValueError, match=r"1 timestamps are earlier than that of the position before \(first: user 'u0'\)"):
        prepare(_write(tmp_path, SHOP, log))


@pytest.mark.parametrize(
    "value", [1_700_000_000, 1_700_000_000_000, 1_700_000_000_123_456 // 1000 * 1000, 1_700_000_000_000_000_000]
)
def test_whole_numbers_are_seconds_milli_micro_or_nanoseconds_by_their_size(tmp_path, value):
    made = prepare(_write(tmp_path, SHOP, _log("abcd", timestamp=[value] * 4)))
    assert made.interactions["timestamp"][0].as_py().replace(microsecond=0) == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_timestamps_with_microseconds_and_dates_become_milliseconds(tmp_path):
    micro = pa.array([1_700_000_000_123_456] * 4, pa.timestamp("us"))
    made = prepare(_write(tmp_path / "micro", SHOP, _log("abcd", timestamp=micro)))
    assert made.interactions["timestamp"].cast(pa.int64()).to_pylist() == [1_700_000_000_123] * 4
    days = pa.array([19_675, 19_676, 19_677, 19_678], pa.date32())
    made = prepare(_write(tmp_path / "days", SHOP, _log("abcd", timestamp=days)))
    assert made.interactions["timestamp"][0].as_py() == datetime(2023, 11, 14, tzinfo=UTC)


def test_orphans_are_an_error_that_says_what_drops_them(tmp_path):
    folder = _write(tmp_path, SHOP, _log("abcd", "axbcd", "xyz", timestamp=list(range(12))))
    with pytest.raises(
        ValueError, match=r"3 items are not in items\.parquet \(first: 'x'\); data\.orphans = \"drop\" leaves out their 4"
    ):
        prepare(folder)
    made = prepare(folder, orphans="drop")
    assert _sequences(made) == {"u0": "abcd", "u1": "abcd"}
    assert made.rejected["interactions"] == {"interaction with an unknown item": 4}


def test_one_orphan_in_many_rows_is_found(tmp_path):
    words = ["abcd"] * 5000
    words[3777] = "abzd"
    folder = _write(tmp_path, SHOP, _log(*words, timestamp=list(range(20_000))))
    with pytest.raises(ValueError, match=r"1 items are not in items\.parquet \(first: 'z'\).* leaves out their 1 interactions"):
        prepare(folder)
    assert len(prepare(folder, orphans="drop").interactions) == 19_999


def test_untitled_items_are_an_error_or_left_out_with_their_interactions(tmp_path):
    items = SHOP | {"title": ["A", "nan", " ", "D", "E", "<br>"]}
    folder = _write(tmp_path, items, _log("adeb", "adeac", timestamp=list(range(9))))
    with pytest.raises(ValueError, match=r"2 items have an empty title in items\.parquet \(first: 'b'\); data\.untitled"):
        prepare(folder)
    made = prepare(folder, untitled="drop")
    assert _sequences(made) == {"u0": "ade", "u1": "adea"}
    assert made.rejected["interactions"] == {"interaction with an untitled item": 2}
    assert made.rejected["items"] == {"item without title": 3}
    assert any("title that says it is missing" in note for note in made.notes)


def test_low_ratings_are_left_out_and_those_of_0_stay(tmp_path):
    rating = pa.array([-1, 0, 5, None, 3, 2, 1, 4], pa.float32())
    folder = _write(tmp_path, SHOP, _log("abcde", "fab", timestamp=list(range(8)), rating=rating))
    made = prepare(folder)
    assert _sequences(made) == {"u0": "bcde", "u1": "fab"}
    assert made.rejected["interactions"] == {"interaction rated below 0": 1}
    made = prepare(
        _write(tmp_path / "two", SHOP, _log("abcde", "fabc", timestamp=list(range(9)), rating=[5, 3, 3, 4, 3, 2, 3, 3, 3])),
        min_rating=3,
    )
    assert _sequences(made) == {"u0": "abcde", "u1": "abc"}


def test_doubled_rows_are_an_error_or_dropped(tmp_path):
    folder = _write(tmp_path, SHOP, _log("aabcd", "abcd", timestamp=[1, 1, 2, 3, 4, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"1 rows repeat the user, item and time of another row \(first: row 1\)"):
        prepare(folder)
    made = prepare(folder, duplicates="drop")
    assert _sequences(made) == {"u0": "abcd", "u1": "abcd"}
    assert made.rejected["interactions"] == {"further row of a user, item and time": 1}
    items = {"item_id": list("abacdef"), "title": ["A", "B", "Other", "C", "D", "E", "F"]}
    folder = _write(tmp_path / "items", items, _log("abcd", timestamp=list(range(4))))
    with pytest.raises(ValueError, match=r"duplicate key item_id='a' \(1 keys occur more than once\); data\.duplicates"):
        prepare(folder)
    made = prepare(folder, duplicates="drop")
    assert made.items.slice(0, 2)["title"].to_pylist() == ["A", "B"]
    assert made.rejected["items"] == {"further row of an item": 1}


@pytest.mark.parametrize("bad", ["", " ", "a ", "\ta"])
def test_an_id_that_is_empty_or_padded_is_an_error(tmp_path, bad):
    items = {"item_id": [*"abc", bad], "title": ["A", "B", "C", "D"]}
    with pytest.raises(
        ValueError, match=r"items\.parquet: table items, column item_id: 1 (empty values|ids begin or end with white)"
    ):
        prepare(_write(tmp_path, items, _log("abcd", timestamp=[1, 2, 3, 4])))


def test_ids_that_look_like_numbers_stay_what_they_are(tmp_path):
    items = {"item_id": ["00123", "123", "1e5", "nan"], "title": ["A", "B", "C", "D"]}
    log = {"user_id": ["007"] * 4, "item_id": ["00123", "123", "1e5", "nan"], "timestamp": [1, 2, 3, 4]}
    made = prepare(_write(tmp_path, items, log))
    assert made.items["item_id"].to_pylist() == ["00123", "123", "1e5", "nan"]
    assert set(made.histories["user_id"].to_pylist()) == {"007"}


def _foreign_items() -> list[pa.Table]:
    """The same six items as pandas, polars, Spark and a database write them."""
    titles = pa.array(SHOP["title"])
    ids, files = pa.array(SHOP["item_id"]), pa.array(["i/a.png", None, "", "i/d.png", None, None])
    lists = [["x"], ["x", "y"], [], None, ["z"], ["z"]]
    prices = [Decimal("1.50"), None, Decimal("3.00"), None, None, Decimal("14000000.00")]
    return [
        pa.table(
            {
                "item_id": ids.cast(pa.large_string()),
                "title": titles.cast(pa.large_string()),
                "image_file": files.cast(pa.large_string()),
                "categories": pa.array(lists, pa.large_list(pa.large_string())),
                "price": pa.array(prices, pa.decimal128(12, 2)),
            }
        ),
        pa.table(
            {
                "item_id": ids.cast(pa.string_view()),
                "title": titles.dictionary_encode(),
                "image_file": files.cast(pa.string_view()),
                "categories": pa.array(lists, pa.list_(pa.string_view())),
                "price": pa.array([None if price is None else float(price) for price in prices], pa.float32()),
            }
        ),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_the_types_of_other_libraries_are_read(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(_foreign_items()[kind], folder / "items.parquet")
    log = _log("abcdef", timestamp=list(range(6)))
    pq.write_table(pa.table({name: pa.array(values) for name, values in log.items()}), folder / "interactions.parquet")
    rows = prepare(str(folder)).items.to_pylist()
    assert [row["categories"] for row in rows] == [["x"], ["x", "y"], None, None, ["z"], ["z"]]
    assert [row["price"] for row in rows] == [1.5, None, 3.0, None, None, 14_000_000.0]
    assert rows[0]["image_uri"] == f"{folder}/i/a.png" and rows[2]["image_uri"] is None
    assert [row["title"] for row in rows] == SHOP["title"]


def test_prices_that_nobody_can_pay_are_null_and_counted(tmp_path):
    items = SHOP | {"price": [-1.0, float("inf"), float("nan"), 0.0, 2.0, None], "currency": ["EUR"] * 5 + [""]}
    folder = _write(tmp_path, items, _log("abcdef", timestamp=list(range(6))))
    made = prepare(folder)
    assert made.items["price"].to_pylist() == [None, None, None, 0.0, 2.0, None]
    assert made.items["currency"].to_pylist() == ["EUR"] * 5 + [None]
    assert any("2 times" in note and "price below 0 or infinite" in note for note in made.notes)


def test_prices_without_a_currency_are_in_that_of_the_config(tmp_path):
    items = SHOP | {"price": [1.0, 2.0, None, None, None, None], "currency": ["EUR", "", None, None, None, None]}
    folder = _write(tmp_path, items, _log("abcdef", timestamp=list(range(6))))
    assert prepare(folder).items["currency"].to_pylist() == ["EUR", None, None, None, None, None]
    assert prepare(folder, currency="SEK").items["currency"].to_pylist() == ["EUR", "SEK", None, None, None, None]


def test_markup_becomes_the_text_it_shows(tmp_path):
    descriptions = [
        '<p data-start="1">Strong &amp; light</p><p>Red</p>',
        "H<sub>2</sub>O",
        "a < b & c",
        "<style>p{}</style>",
        None,
        "x",
    ]
    items = SHOP | {
        "title": ["Acme&reg; <i>Pro</i>", "B", "C", '<span id="x">D</span>', "E", "&quot;F&quot;"],
        "description": descriptions,
    }
    folder = _write(tmp_path, items, _log("abcdef", timestamp=list(range(6))))
    made = prepare(folder)
    assert made.items["title"].to_pylist() == ["Acme® Pro", "B", "C", "D", "E", '"F"']
    assert made.items["description"].to_pylist() == ["Strong & light Red", "H2O", "a < b & c", None, None, "x"]
    assert prepare(folder, strip_html=False).items["title"][0].as_py() == "Acme&reg; <i>Pro</i>"


def test_folders_of_parts_are_read_in_the_order_of_their_names(tmp_path):
    """Spark writes a folder; its first part may hold nothing but nulls in a column, or not have it."""
    for name, tables in {
        "items": [
            pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "image_url": pa.nulls(2)}),
            pa.table(
                {"item_id": ["c", "d"], "title": ["C", "D"], "image_url": ["https://x.example/c.png", None], "brand": ["x", "y"]}
            ),
        ],
        "interactions": [
            pa.table({"user_id": ["u"] * 2, "item_id": ["a", "b"]}),
            pa.table({"user_id": ["u"] * 2, "item_id": ["c", "d"]}),
        ],
    }.items():
        for number, table in enumerate(tables):
            path = tmp_path / f"{name}.parquet" / f"part-{number:05d}-c000.snappy.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, path)
        (tmp_path / f"{name}.parquet" / "_SUCCESS").touch()
        (tmp_path / f"{name}.parquet" / "_temporary" / "0").mkdir(parents=True)
        (tmp_path / f"{name}.parquet" / "_temporary" / "0" / "half.parquet").write_bytes(b"PAR1")
    made = prepare(str(tmp_path))
    assert _sequences(made) == {"u": "abcd"}
    assert made.items["image_uri"].to_pylist() == [None, None, "https://x.example/c.png", None]


def test_long_texts_are_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    """A batch is bounded by its bytes too: 65,536 descriptions of 40 kB do not fit into one column of Arrow."""
    ids = [f"i{number}" for number in range(50)]
    long = ["long " * 200] * 30 + [f"{number} " * 300 for number in range(20)]  # the file holds the repeated text once
    items = {"item_id": ids, "title": ids, "description": long}
    log = {"user_id": ["u"] * 50, "item_id": ids, "position": pa.array(range(50), pa.int32())}
    folder = _write(tmp_path, items, log)
    whole = prepare(folder).items
    monkeypatch.setattr(common_form, "BATCH_BYTES", 3_000)
    sizes = [(len(batch), batch["row"][0].as_py()) for batch in common_form.open_folder(folder, False).items]
    assert max(size for size, _ in sizes) <= 4
    assert [row for _, row in sizes] == [sum(size for size, _ in sizes[:at]) for at in range(len(sizes))]
    assert prepare(folder).items.equals(whole)
    assert len(whole) == 50


def test_a_broken_page_or_footer_is_one_line_that_names_the_file(tmp_path):
    folder = Path(_write(tmp_path, SHOP, _log("abcdef", timestamp=list(range(6)))))
    whole = (folder / "interactions.parquet").read_bytes()
    (folder / "interactions.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"interactions\.parquet: not a Parquet file"):
        prepare(str(folder))
    broken = bytearray(whole)
    broken[4:40] = bytes(36)
    (folder / "interactions.parquet").write_bytes(bytes(broken))
    with pytest.raises(ValueError, match=r"interactions\.parquet: cannot be read: "):
        prepare(str(folder))


def test_columns_that_are_not_read_are_named_with_the_one_they_may_mean(tmp_path):
    items = SHOP | {"images_url": ["x"] * 6, "stock": [1] * 6}
    made = prepare(_write(tmp_path, items, _log("abcdef", timestamp=list(range(6)))))
    assert made.notes[0].endswith("columns that are not read: images_url (is it image_url?), stock")


@settings(max_examples=25)
@given(
    words=st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=7),
    split=st.sampled_from(["leave_one_out", "temporal"]),
    users=st.integers(1, 4),
    core=st.sampled_from([0, 2]),
)
def test_parts_do_not_change_the_tables(tmp_path_factory, words, split, users, core):
    total = sum(map(len, words))
    log = _log(*words, timestamp=[at * 7919 % 11 for at in range(total)])
    folder = _write(tmp_path_factory.mktemp("parts"), SHOP, log)
    try:
        whole = prepare(folder, split=split, core=core, duplicates="drop")
    except ValueError as error:
        assert "is empty" in str(error) or "no interaction is left" in str(error)
        return
    parts = prepare(folder, split=split, core=core, duplicates="drop", users_per_part=users, items_per_part=2)
    for name in ("items", "interactions", "histories"):
        assert getattr(parts, name).combine_chunks().equals(getattr(whole, name).combine_chunks())
    assert parts.facts == whole.facts and parts.rejected == whole.rejected
    assert [parts.facts["split_rows"][name] for name in SPLITS] == [
        pc.sum(pc.equal(whole.histories["split"], name)).as_py() for name in SPLITS
    ]
