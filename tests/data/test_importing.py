"""Files of any usual kind become a folder in the common form, and whatever is left out is counted by its reason."""

import gzip
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from digr.data.importing import import_data

ROOT = Path(__file__).resolve().parents[2]
ITEMS = "item_id,title\na,Pan\nb,Pot\n"


def run(out: Path | str, *files: Path | str, **options) -> tuple[dict, list[str]]:
    """Import and return the facts, and the lines that were printed."""
    lines: list[str] = []
    facts = import_data([str(file) for file in files], str(out), lines.append, **options)
    return facts, lines


def write(folder: Path, **files: str | bytes) -> list[Path]:
    """Write files; `__` in a name stands for a dot."""
    paths = []
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(path)
    return paths


def rows(out: Path | str, name: str) -> list[dict]:
    fs, path = pafs.FileSystem.from_uri(out) if str(out).startswith("s3://") else (pafs.LocalFileSystem(), str(out))
    return pq.read_table(f"{path}/{name}.parquet", filesystem=fs).to_pylist()


def test_two_csv_files_become_a_folder_in_the_common_form(tmp_path):
    orders = "customer,sku,order_date,stars\n007,00123,2024-01-02,5\nx, 0045 ,2024-01-03T10:00:00+02:00,\n"
    products = 'sku;name;price;category;photo\n00123;nan;$1,299.00;A > B;pics/1.jpg\n0045;"A ""big"" pan";9,99 EUR;Home|Kitchen;https://x/y.png\n'
    facts, lines = run(tmp_path / "out", *write(tmp_path, orders__csv=orders, products__csv=products))
    table = pq.read_table(tmp_path / "out" / "interactions.parquet")
    assert table.schema == pa.schema(
        [
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("timestamp", pa.timestamp("ms", tz="UTC")),
            ("rating", pa.float64()),
        ]
    )
    assert table.to_pylist() == [
        {"user_id": "007", "item_id": "00123", "timestamp": datetime(2024, 1, 2, tzinfo=UTC), "rating": 5.0},
        {"user_id": "x", "item_id": "0045", "timestamp": datetime(2024, 1, 3, 8, tzinfo=UTC), "rating": None},
    ]
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "00123", "title": "nan", "categories": ["A", "B"], "price": 1299.0, "currency": "USD",
         "image_url": None, "image_file": str(tmp_path / "pics/1.jpg")},
        {"item_id": "0045", "title": 'A "big" pan', "categories": ["Home", "Kitchen"], "price": 9.99, "currency": "EUR",
         "image_url": "https://x/y.png", "image_file": None},
    ]  # fmt: skip
    assert facts["ids_stripped"] == 1
    assert f"{tmp_path / 'products.csv'}: names, items; csv, utf-8, delimiter ';', 2 rows" in lines
    assert {"  customer -> user_id", "  order_date -> timestamp", "  stars -> rating"} <= set(lines)
    assert json.loads((tmp_path / "out" / "import.json").read_text())["rows"] == {"interactions": 2, "items": 2}


def test_every_row_that_is_left_out_is_counted_once_by_its_first_reason(tmp_path):
    orders = (
        "user_id,item_id,time,event\nu,a,1700000000,buy\n,a,1700000000,buy\n  ,,never,view\nu,\u3000,1700000000,buy\n"
        "u,a,1700000000,view\nu,a,never,view\nu,a,never,buy\nu,b,,buy\nv,b,1700000001,buy\n"
    )
    items = "item_id,title\na,Pan\n ,Ghost\nb,\n"
    facts, lines = run(tmp_path / "out", *write(tmp_path, log__csv=orders, items__csv=items), events=["buy"])
    assert facts["dropped"] == {
        "interactions": {"no user id": 2, "no item id": 1, "event not chosen": 2, "unreadable time": 2},
        "items": {"no item id": 1},
    }
    assert facts["rows"] == {"interactions": 2, "items": 2}
    assert facts["events"] == {"buy": 6, "view": 3}
    assert [(row["user_id"], row["item_id"]) for row in rows(tmp_path / "out", "interactions")] == [("u", "a"), ("v", "b")]
    assert rows(tmp_path / "out", "items") == [{"item_id": "a", "title": "Pan"}, {"item_id": "b", "title": None}]
    assert "left out of interactions: 2 rows: unreadable time" in lines
    assert any(line.startswith("events: buy 6, view 3") for line in lines)


def test_an_event_that_no_row_has_is_refused_with_those_that_are_there(tmp_path):
    files = write(tmp_path, log__csv="user_id,item_id,event\nu,a,buy\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match="--events purchase: no row has this event; found buy"):
        run(tmp_path / "out", *files, events=["purchase"])


def test_check_writes_nothing_and_says_the_same_counts(tmp_path):
    files = write(tmp_path, log__csv="user_id,item_id\nu,a\n,b\n", items__csv=ITEMS)
    facts, _ = run("", *files, check=True)
    assert facts["rows"] == {"interactions": 1, "items": 2}
    assert facts["dropped"]["interactions"] == {"no user id": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.csv", "log.csv"]


def test_a_folder_that_is_there_stays_unless_forced_and_only_if_an_import_wrote_it(tmp_path):
    files = write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=ITEMS)
    out = tmp_path / "out"
    run(out, *files)
    with pytest.raises(ValueError, match="is there already; give --force"):
        run(out, *files)
    (out / "stale.txt").write_text("old")
    run(out, *files, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["import.json", "interactions.parquet", "items.parquet"]
    (out / "import.json").unlink()
    with pytest.raises(ValueError, match=r"has no import\.json, so no import wrote it"):
        run(out, *files, force=True)
    assert (out / "items.parquet").is_file()


def test_a_failed_import_leaves_nothing_behind(tmp_path):
    files = write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__parquet=b"PAR1 broken")
    with pytest.raises(ValueError, match=r"items\.parquet: not a Parquet file that can be read"):
        run(tmp_path / "out", *files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.parquet", "log.csv"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda text: text.strip()
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), form=st.sampled_from(["csv", "jsonl", "parquet"]))
def test_ids_survive_any_characters(tmp_path_factory, pairs, form):
    import csv

    folder = tmp_path_factory.mktemp("ids")
    log, items = folder / f"log.{form}", folder / f"items.{form}"
    tables = {log: [("user_id", "item_id"), *pairs], items: [("item_id", "title"), *((item, "T") for _, item in pairs)]}
    for path, (head, *body) in tables.items():
        if form == "csv":
            with path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([head, *body])
        elif form == "jsonl":
            path.write_text("".join(json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in body))
        else:
            pq.write_table(pa.table(dict(zip(head, map(list, zip(*body, strict=True)), strict=True))), path)
    run(folder / "out", log, items)
    found = [(row["user_id"], row["item_id"]) for row in rows(folder / "out", "interactions")]
    assert found == [(user.strip(), item.strip()) for user, item in pairs]
    assert [row["item_id"] for row in rows(folder / "out", "items")] == [item.strip() for _, item in pairs]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("881250949", "1997-12-04T15:55:49+00:00"),
        ("1547589356557", "2019-01-15T21:55:56.557000+00:00"),
        ("1547589356557123", "2019-01-15T21:55:56.557000+00:00"),
        ("1547589356557123456", "2019-01-15T21:55:56.557000+00:00"),
        ("2014-01-15 10:35:04 -0500", "2014-01-15T15:35:04+00:00"),
        ("2014-01-15T10:35:04Z", "2014-01-15T10:35:04+00:00"),
        ("20140115", "2014-01-15T00:00:00+00:00"),
        ("20140115103504", "2014-01-15T10:35:04+00:00"),
        ("12/1/2010 8:26", "2010-12-01T08:26:00+00:00"),
        ("12/1/10 8:26", "2010-12-01T08:26:00+00:00"),
        ("13/1/2010", "2010-01-13T00:00:00+00:00"),
        ("14.10.2011 05:06", "2011-10-14T05:06:00+00:00"),
        ("09 13, 2009", "2009-09-13T00:00:00+00:00"),
        ("Sat Aug 01 12:00:00 +0000 2009", "2009-08-01T12:00:00+00:00"),
        ("Jan 5, 2015", "2015-01-05T00:00:00+00:00"),
    ],
)
def test_usual_ways_to_write_a_time_are_read(tmp_path, text, expected):
    files = write(tmp_path, log__csv=f'user_id,item_id,timestamp\nu,a,"{text}"\n', items__csv=ITEMS)
    run(tmp_path / "out", *files)
    assert rows(tmp_path / "out", "interactions")[0]["timestamp"] == datetime.fromisoformat(expected)


def test_a_text_without_a_zone_does_not_get_the_zone_of_the_row_before(tmp_path):
    log = "user_id,item_id,timestamp\nu,a,2014-01-15 10:35:04 -0500\nu,b,13/1/2010\n"
    run(tmp_path / "out", *write(tmp_path, log__csv=log, items__csv=ITEMS))
    assert rows(tmp_path / "out", "interactions")[1]["timestamp"] == datetime(2010, 1, 13, tzinfo=UTC)


def test_one_day_above_twelve_decides_that_days_come_first_for_the_whole_file(tmp_path):
    log = "user_id,item_id,timestamp\n" + "u,a,2/1/2020\n" * 20_000 + "u,b,13/1/2020\n"
    run(tmp_path / "out", *write(tmp_path, log__csv=log, items__csv=ITEMS))
    assert rows(tmp_path / "out", "interactions")[0]["timestamp"] == datetime(2020, 1, 2, tzinfo=UTC)


def test_a_column_named_as_a_time_that_holds_none_is_an_error(tmp_path):
    files = write(tmp_path, log__csv="user_id,item_id,when\nu,a,soon\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match="no value of 'when' reads as a time"):
        run(tmp_path / "out", *files, columns={"timestamp": ["when"]})


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "gb18030", "cp1250", "cp1251", "shift_jis"]
)
def test_encodings_are_found_out(tmp_path, encoding):
    words = {"gb18030": "不锈钢平底锅 厨房用品 家用电器", "cp1250": "Żółta łąka, źdźbło", "cp1251": "Сковорода чугунная"}
    words["shift_jis"] = "フライパン 鉄製 キッチン"
    title = words.get(encoding, "Crème brûlée, façade, naïve, Müller, garçon")
    items = "item_id;title\n" + "".join(f"{item};{title}\n" for item in "ab")
    files = write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items.encode(encoding))
    run(tmp_path / "out", *files)
    assert rows(tmp_path / "out", "items")[0] == {"item_id": "a", "title": title}


def test_an_encoding_is_judged_by_the_whole_file(tmp_path):
    items = "item_id,title\n" + "".join(f"i{number},Plain pan\n" for number in range(100_000)) + "a,Crème brûlée\n"
    files = write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items.encode("latin-1"))
    run(tmp_path / "out", *files)
    assert rows(tmp_path / "out", "items")[-1] == {"item_id": "a", "title": "Crème brûlée"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found_out_and_said(tmp_path, delimiter):
    items = f"item_id{delimiter}title\na{delimiter}6 inch pan\nb{delimiter}Pot\n"
    _, lines = run(tmp_path / "out", *write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items))
    said = "tab" if delimiter == "\t" else delimiter
    assert any(f"items.csv: names, items; csv, utf-8, delimiter {said!r}, 2 rows" in line for line in lines)
    assert rows(tmp_path / "out", "items")[0] == {"item_id": "a", "title": "6 inch pan"}


def test_few_rows_with_another_number_of_columns_are_counted_and_many_are_an_error(tmp_path):
    good = "".join(f"u{number % 7},a\n" for number in range(40))
    files = write(tmp_path, log__csv=f"user_id,item_id\n{good}u,a,b,c\nu\n", items__csv=ITEMS)
    facts, lines = run(tmp_path / "out", *files)
    assert facts["rows"]["interactions"] == 40
    assert facts["tables"][0]["unreadable_rows"] == 2
    assert any("2 that cannot be read and are left out (line 42:" in line for line in lines)
    files = write(tmp_path, log__csv="user_id,item_id\nu,a\nu,b\nu,a,b\nu\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match=r"log\.csv: 2 of 4 rows cannot be read, so the file is broken; first: line 4"):
        run(tmp_path / "out2", *files)


def test_quoted_cells_hold_line_ends_and_delimiters(tmp_path):
    items = 'item_id,title,description\r\na,"Pan, big","First line\r\nsecond ""line"""\r\nb,Pot,\r\n'
    run(tmp_path / "out", *write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items))
    assert rows(tmp_path / "out", "items")[0] == {
        "item_id": "a", "title": "Pan, big", "description": 'First line\r\nsecond "line"'
    }  # fmt: skip


def test_json_lines_keep_numbers_as_they_are_and_read_what_comes_late(tmp_path):
    items = "".join(json.dumps({"item_id": f"i{number}", "title": "T", "price": None}) + "\n" for number in range(10_000))
    items += '{"item_id": "00123", "title": "late", "price": 2.5, "categories": [["A", "B"], ["A", "C"]]}\nnot json\n'
    log = '{"user_id": 12345678901234567890123, "item_id": "00123"}\n{"user_id": "00123", "item_id": 7}\n'
    facts, _ = run(tmp_path / "out", *write(tmp_path, log__jsonl=log, items__jsonl=items))
    assert [(row["user_id"], row["item_id"]) for row in rows(tmp_path / "out", "interactions")] == [
        ("12345678901234567890123", "00123"),
        ("00123", "7"),
    ]
    last = rows(tmp_path / "out", "items")[-1]
    assert (last["item_id"], last["price"], last["categories"]) == ("00123", 2.5, ["A", "B", "C"])
    assert facts["tables"][1]["unreadable_rows"] == 1


def test_one_json_array_is_read(tmp_path):
    files = write(
        tmp_path,
        log__json='[\n  {"user_id": "u", "item_id": "a"},\n  {"user_id": "v", "item_id": "b"}\n]\n',
        items__json='[{"item_id":"a","title":"Pan"},{"item_id":"b","title":"Pot"}]',
    )
    run(tmp_path / "out", *files)
    assert [row["user_id"] for row in rows(tmp_path / "out", "interactions")] == ["u", "v"]


def test_shards_of_parquet_may_differ_in_type_and_lists_stay_lists(tmp_path):
    first = pa.table({"item_id": ["a"], "title": ["Pan"], "image_url": pa.nulls(1), "categories": [["A", "B"]]})
    second = pa.table({"item_id": ["b"], "title": ["Pot"], "image_url": ["http://x/b.jpg"], "categories": [["C"]]})
    pq.write_table(first, tmp_path / "items-00000-of-00002.parquet")
    pq.write_table(second, tmp_path / "items-00001-of-00002.parquet")
    pq.write_table(pa.table({"user_id": [1.0, 2.0, None], "item_id": ["a", "b", "b"]}), tmp_path / "log.parquet")
    facts, _ = run(tmp_path / "out", *sorted(tmp_path.glob("*.parquet")))
    assert [(row["categories"], row["image_url"]) for row in rows(tmp_path / "out", "items")] == [
        (["A", "B"], None),
        (["C"], "http://x/b.jpg"),
    ]
    assert [row["user_id"] for row in rows(tmp_path / "out", "interactions")] == ["1", "2"]
    assert facts["dropped"]["interactions"] == {"no user id": 1}


def test_a_folder_of_parts_is_one_table_in_the_order_of_its_names(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    for number, user in enumerate("xyz"):
        (folder / f"part-{number:05d}-6f1c-c000.csv").write_text(f"user_id,item_id\n{user},a\n")
    (folder / "_SUCCESS").write_text("")
    (folder / ".part-00000.crc").write_bytes(b"\0\1")
    facts, _ = run(tmp_path / "out", folder, *write(tmp_path, items__csv=ITEMS))
    assert [row["user_id"] for row in rows(tmp_path / "out", "interactions")] == ["x", "y", "z"]
    assert facts["tables"][0]["files"].endswith("part-00000-6f1c-c000.csv and 2 more")


def test_names_of_files_and_columns_are_never_part_of_a_query(tmp_path):
    odd = tmp_path / "it's [a] *?; DROP.csv"
    odd.write_text('user_id,"x"" FROM y; --",item_id,User_Id\nu,1,a,2\n')
    run(tmp_path / "out", odd, *write(tmp_path, items__csv=ITEMS), columns={"rating": ['x" FROM y; --'], "user_id": ["user_id"]})
    assert rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a", "rating": 1.0}]


def test_columns_that_both_fit_are_an_error_that_says_what_to_do(tmp_path):
    files = write(tmp_path, log__csv="customer,visitorid,sku\nu,v,a\n", items__csv="sku,name\na,Pan\n")
    with pytest.raises(
        ValueError,
        match=r"'customer' and 'visitorid' may both be user_id; say which: put user_id = 'customer' into \[data\.columns\]",
    ):
        run(tmp_path / "out", *files)
    run(tmp_path / "out", *files, columns={"user_id": ["visitorid"]})
    assert rows(tmp_path / "out", "interactions")[0]["user_id"] == "v"


def test_chosen_columns_may_be_called_differently_in_two_files(tmp_path):
    files = write(tmp_path, log__csv="wer,was\nu,a\n", items__csv="nummer,bezeichnung\na,Pfanne\n")
    run(tmp_path / "out", *files, columns={"user_id": ["wer"], "item_id": ["was", "nummer"], "title": ["bezeichnung"]})
    assert rows(tmp_path / "out", "items") == [{"item_id": "a", "title": "Pfanne"}]


def test_a_chosen_column_that_no_file_has_names_the_nearest(tmp_path):
    files = write(tmp_path, log__csv="customer_no,sku\nu,a\n", items__csv="sku,name\na,Pan\n")
    with pytest.raises(ValueError, match="user_id = 'customer_nr': no file has this column; the nearest is 'customer_no'"):
        run(tmp_path / "out", *files, columns={"user_id": ["customer_nr"]})
    with pytest.raises(ValueError, match="'userid' is no column of ours; the nearest is 'user_id'"):
        run(tmp_path / "out", *files, columns={"userid": ["customer_no"]})


def test_without_titles_or_users_the_import_says_what_it_found(tmp_path):
    log, items = write(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=ITEMS)
    with pytest.raises(
        ValueError, match=r"no file has titles of items; found .*log\.csv: interactions, columns user_id, item_id"
    ):
        run(tmp_path / "out", log)
    with pytest.raises(ValueError, match=r"no file says who used which item; found .*items\.csv: items, columns item_id, title"):
        run(tmp_path / "out", items)


def test_an_id_that_is_new_in_every_row_is_no_user(tmp_path):
    log = "user_id,item_id\n" + "".join(f"r{number},a\n" for number in range(3000))
    with pytest.raises(ValueError, match=r"'user_id' has another value in nearly every row"):
        run(tmp_path / "out", *write(tmp_path, log__csv=log, items__csv=ITEMS))


def test_a_log_with_names_of_items_gives_the_items_too(tmp_path):
    log = (
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        "536365,85123A,WHITE HEART,6,12/1/2010 8:26,2.55,17850,UK\n536366,85123A,wrong,6,12/1/2010 8:28,2.55,17850,UK\n"
        "536367,85123A,WHITE HEART,6,12/1/2010 8:34,2.55,,UK\n536368,POST,,1,12/13/2010 8:34,18,13047,UK\n"
    )
    facts, _ = run(tmp_path / "out", *write(tmp_path, online__csv=log))
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "85123A", "title": "WHITE HEART", "price": 2.55, "currency": None},
        {"item_id": "POST", "title": None, "price": 18.0, "currency": None},
    ]
    assert facts["dropped"]["interactions"] == {"no user id": 1}
    assert [row["user_id"] for row in rows(tmp_path / "out", "interactions")] == ["17850", "17850", "13047"]


def test_a_position_is_used_only_where_no_user_has_one_twice(tmp_path):
    log, items = write(tmp_path, log__csv="user_id,item_id,position\nu,a,1\nu,b,0\n", items__csv=ITEMS)
    run(tmp_path / "out", log, items)
    assert [row["position"] for row in rows(tmp_path / "out", "interactions")] == [1, 0]
    log.write_text("user_id,item_id,position\nu,a,1\nu,b,1\n")
    _, lines = run(tmp_path / "out2", log, items)
    assert "position" not in rows(tmp_path / "out2", "interactions")[0]
    assert "note: position is not used: 0 rows have none and 1 share it with another row of their user" in lines


def test_the_common_form_with_splits_comes_back_as_it_was(tmp_path):
    out = tmp_path / "first"
    splits = tmp_path / "data" / "splits"
    splits.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": ["Pan", "Pot"]}), tmp_path / "data" / "items.parquet")
    log = pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "position": [0, 1]})
    pq.write_table(log, tmp_path / "data" / "interactions.parquet")
    for split in ("train", "valid", "test"):
        pq.write_table(pa.table({"user_id": ["u"], "history": [["a"]], "target": ["b"]}), splits / f"{split}.parquet")
    run(out, tmp_path / "data")
    assert rows(out, "interactions") == log.to_pylist()
    assert rows(out, "splits/valid") == [{"user_id": "u", "history": ["a"], "target": "b"}]


@pytest.mark.parametrize("pack", ["gz", "zip", "tar.gz"])
def test_packed_files_are_read(tmp_path, pack):
    contents = {"data/log.csv": b"user_id,item_id\nu,a\n", "data/items.csv": ITEMS.encode()}
    if pack == "gz":
        files = []
        for name, content in contents.items():
            files.append(tmp_path / f"{Path(name).name}.gz")
            files[-1].write_bytes(gzip.compress(content))
    else:
        files = [tmp_path / f"all.{pack}"]
        _pack(files[0], contents)
    run(tmp_path / "out", *files)
    assert rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]


def _pack(path: Path, contents: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("pack", ["zip", "tar.gz"])
def test_members_that_point_out_of_the_folder_write_nothing_there(tmp_path, pack):
    inner = tmp_path / "inner"
    inner.mkdir()
    _pack(inner / f"all.{pack}", {"../../evil.csv": b"user_id,item_id\nu,a\n", "/items.csv": ITEMS.encode()})
    run(inner / "out", inner / f"all.{pack}")
    assert not list(tmp_path.rglob("evil.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner"]


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("digr.data.readers.fetching.FREE_BYTES", 1 << 20)
    _pack(tmp_path / "bomb.zip", {"log.csv": b"a" * (8 << 20)})
    with pytest.raises(ValueError, match=r"bomb\.zip: unpacks to more than 200 times its size"):
        run(tmp_path / "out", tmp_path / "bomb.zip")


def test_a_broken_archive_is_named(tmp_path):
    whole = gzip.compress(b"user_id,item_id\n" + b"".join(b"u%d,a\n" % number for number in range(1000)))
    for name, content in {"log.csv.gz": whole[:-100], "other.zip": b"PK\x03\x04 broken"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: the archive is broken"):
            run(tmp_path / "out", tmp_path / name)


@pytest.mark.parametrize("address", ["gs://bucket/x.csv", "hf://datasets/x"])
def test_other_schemes_are_refused_by_name(tmp_path, address):
    with pytest.raises(
        ValueError, match=rf"{address}: {address[:2]}:// cannot be read here; expected a local path, http\(s\):// or s3://"
    ):
        run(tmp_path / "out", address)


@pytest.fixture
def web(tmp_path):
    """Serve a folder on loopback."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_files_come_over_http_and_their_relative_pictures_are_addresses_there(tmp_path, web):
    folder, address = web
    (folder / "log.csv.gz").write_bytes(gzip.compress(b"user_id,item_id\nu,a\n"))
    (folder / "items.csv").write_text("item_id,title,image\na,Pan,pics/a.jpg\n")
    run(tmp_path / "out", f"{address}/log.csv.gz", f"{address}/items.csv?version=2")
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "a", "title": "Pan", "image_url": f"{address}/pics/a.jpg", "image_file": None}
    ]
    with pytest.raises(ValueError, match=r"/none\.csv: not fetched: .*404"):
        run(tmp_path / "out2", f"{address}/none.csv")


@pytest.fixture(scope="module")
def bucket():
    """Serve one empty bucket on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="shop")
        yield "s3://shop"
    server.stop()


def test_an_import_reads_from_s3_and_writes_there(tmp_path, bucket):
    client = boto3.client("s3")
    client.put_object(Bucket="shop", Key="raw/log/part-00000.csv", Body=b"user_id,item_id\nu,a\n")
    client.put_object(Bucket="shop", Key="raw/log/_SUCCESS", Body=b"")
    client.put_object(Bucket="shop", Key="raw/items.csv", Body=ITEMS.encode())
    run(f"{bucket}/out", f"{bucket}/raw/log", f"{bucket}/raw/items.csv")
    assert rows(f"{bucket}/out", "interactions") == [{"user_id": "u", "item_id": "a"}]
    with pytest.raises(ValueError, match="is there already"):
        run(f"{bucket}/out", f"{bucket}/raw")
    run(f"{bucket}/out", f"{bucket}/raw", force=True)
    with pytest.raises(ValueError, match="s3://shop/none: no such file or folder"):
        run(tmp_path / "out", f"{bucket}/none")


def command(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.import_data", *map(str, words)], cwd=ROOT, capture_output=True, text=True, **options
    )


def test_the_command_ends_with_its_summary_and_a_mistake_exits_with_two(tmp_path):
    files = write(tmp_path, log__csv="wer,sku\nu,a\n", items__csv="sku,name\na,Pan\n")
    done = command(*files, "--out", tmp_path / "out", "--columns", "user_id=wer")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "job": "jobs.import_data",
        "status": "done",
        "out": str(tmp_path / "out"),
        "formats": ["names"],
        "rows": {"interactions": 1, "items": 1},
        "dropped": {"interactions": {}, "items": {}},
    }
    wrong = command(*files, "--columns", "user_id=wer")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout.splitlines()[-1]) == {
        "job": "jobs.import_data",
        "status": "failed",
        "error": "--out is missing: give the folder to write, or --config with a data.path, or --check to write nothing",
    }


def test_the_command_takes_columns_and_folder_from_a_config(tmp_path):
    files = write(tmp_path, log__csv="wer,sku\nu,a\n", items__csv="sku,name\na,Pan\n")
    (tmp_path / "own.toml").write_text(
        f'[run]\ndir = "x"\n[data]\nsource = "parquet"\npath = "{tmp_path / "out"}"\n[data.columns]\nuser_id = "wer"\nitem_id = ["sku"]\n'
    )
    done = command(*files, "--config", tmp_path / "own.toml", "--check")
    assert done.returncode == 0, done.stderr
    assert "  wer -> user_id" in done.stdout
    assert not (tmp_path / "out").exists()
    assert command(*files, "--config", tmp_path / "own.toml").returncode == 0
    assert rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]
