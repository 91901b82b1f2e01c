"""Files of any usual kind become a folder in the common form; rows left out are counted by reason."""

import json
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from digr.data.importing import writing
from digr.data.importing.writing import image_folders
from tests.data.readers.importing import ITEMS, all_rows, imported, write_files

ROOT = Path(__file__).resolve().parents[2]


def test_two_csv_files_become_a_folder_in_the_common_form(tmp_path):
    orders = "customer,sku,order_date,stars\n007,00123,2024-01-02,5\nx, 0045 ,2024-01-03T10:00:00+02:00,\n"
    products = 'sku;name;price;category;photo\n00123;nan;$1,299.00;A > B;pics/1.jpg\n0045;"A ""big"" pan";9,99 EUR;Home|Kitchen;https://x/y.png\n'
    facts, lines = imported(tmp_path / "out", *write_files(tmp_path, orders__csv=orders, products__csv=products))
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
    assert all_rows(tmp_path / "out", "items") == [
        {"item_id": "00123", "title": "nan", "categories": ["A", "B"], "price": 1299.0, "currency": None,
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
        "u,a,1700000000,view\nu,a,never,view\nu,a,never,buy\nu,b,,buy\nv,b,1700000001,buy\nv,b,1700000002,\n"
    )
    items = "item_id,title\na,Pan\n ,Ghost\nb,\n"
    facts, lines = imported(tmp_path / "out", *write_files(tmp_path, log__csv=orders, items__csv=items), events=["buy"])
    assert facts["dropped"] == {
        "interactions": {"no user id": 2, "no item id": 1, "event not chosen": 3, "unreadable time": 2},
        "items": {"no item id": 1},
    }
    assert facts["rows"] == {"interactions": 2, "items": 2}
    assert facts["events"] == {"buy": 6, "view": 3, "(none)": 1}
    assert [(row["user_id"], row["item_id"]) for row in all_rows(tmp_path / "out", "interactions")] == [("u", "a"), ("v", "b")]
    assert all_rows(tmp_path / "out", "items") == [{"item_id": "a", "title": "Pan"}, {"item_id": "b", "title": None}]
    assert "left out of interactions: 2 rows: unreadable time" in lines
    assert any(line.startswith("events: buy 6, view 3, (none) 1") for line in lines)


def test_an_event_that_no_row_has_is_refused_with_those_that_are_there(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id,event\nu,a,buy\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match="--events purchase: no row has this event; found buy"):
        imported(tmp_path / "out", *files, events=["purchase"])


def test_check_writes_nothing_and_says_the_same_counts(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n,b\n", items__csv=ITEMS)
    facts, _ = imported("", *files, check=True)
    assert facts["rows"] == {"interactions": 1, "items": 2}
    assert facts["dropped"]["interactions"] == {"no user id": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.csv", "log.csv"]


def test_a_folder_that_is_there_stays_unless_forced_and_only_if_an_import_wrote_it(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=ITEMS)
    out = tmp_path / "out"
    imported(out, *files)
    with pytest.raises(ValueError, match="exists already; give --force"):
        imported(out, *files)
    (out / "stale.txt").write_text("old")
    imported(out, *files, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["import.json", "interactions.parquet", "items.parquet"]
    (out / "import.json").unlink()
    with pytest.raises(ValueError, match=r"has no import\.json, so no import wrote it"):
        imported(out, *files, force=True)
    assert (out / "items.parquet").is_file()


def test_a_failed_import_leaves_nothing_behind(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__parquet=b"PAR1 broken")
    with pytest.raises(ValueError, match=r"items\.parquet: not a readable Parquet file"):
        imported(tmp_path / "out", *files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.parquet", "log.csv"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda text: text.strip()
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), form=st.sampled_from(["csv", "jsonl", "parquet"]))
@example(pairs=[("0", "0"), ("0", "\\")], form="csv")
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
    imported(folder / "out", log, items)
    found = [(row["user_id"], row["item_id"]) for row in all_rows(folder / "out", "interactions")]
    assert found == [(user.strip(), item.strip()) for user, item in pairs]
    assert [row["item_id"] for row in all_rows(folder / "out", "items")] == [item.strip() for _, item in pairs]


def test_names_of_files_and_columns_are_never_part_of_a_query(tmp_path):
    odd = tmp_path / "it's [a] *?; DROP.csv"
    odd.write_text('user_id,"x"" FROM y; --",item_id,User_Id\nu,1,a,2\n')
    imported(
        tmp_path / "out",
        odd,
        *write_files(tmp_path, items__csv=ITEMS),
        columns={"rating": ['x" FROM y; --'], "user_id": ["user_id"]},
    )
    assert all_rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a", "rating": 1.0}]


def test_columns_that_both_fit_are_an_error_that_says_what_to_do(tmp_path):
    files = write_files(tmp_path, log__csv="customer,visitorid,sku\nu,v,a\n", items__csv="sku,name\na,Pan\n")
    with pytest.raises(
        ValueError,
        match=r"'customer' and 'visitorid' may both be user_id; choose one: put user_id = 'customer' into \[data\.columns\]",
    ):
        imported(tmp_path / "out", *files)
    imported(tmp_path / "out", *files, columns={"user_id": ["visitorid"]})
    assert all_rows(tmp_path / "out", "interactions")[0]["user_id"] == "v"


def test_of_several_ids_of_a_catalogue_the_one_that_interactions_name_is_taken(tmp_path):
    items = "isbn,product_code,article_id,prod_name,author,publisher\n978,P1,a,Pan,Ann,House\n979,P1,b,Pot,Bob,House\n"
    files = write_files(tmp_path, log__csv="customer_id,article_id\nu,a\nu,b\n", items__csv=items)
    _, lines = imported(tmp_path / "out", *files)
    # of two columns that describe, the more usual one is taken
    assert all_rows(tmp_path / "out", "items") == [
        {"item_id": "a", "title": "Pan", "brand": "Ann"},
        {"item_id": "b", "title": "Pot", "brand": "Bob"},
    ]
    assert "  not used: isbn, product_code, publisher" in lines


def test_orders_and_their_lines_in_two_files_are_joined(tmp_path):
    files = write_files(
        tmp_path,
        orders__csv="Order ID,Customer,Order Date\n7,ann,2024-01-02\n8,bob,2024-01-03\n8,eve,2024-01-04\n",
        lines__csv="order_id,sku,qty\n8,b,1\n7,a,2\n 8 ,a,1\n9,a,1\n",
        items__csv=ITEMS,
    )
    _, lines = imported(tmp_path / "out", *files)
    found = [(row["user_id"], row["item_id"], row["timestamp"].day) for row in all_rows(tmp_path / "out", "interactions")]
    assert found == [("bob", "b", 3), ("ann", "a", 2), ("bob", "a", 3)]
    assert any("1 that cannot be read and are left out (1 lines without an order)" in line for line in lines)
    assert f"note: lines of {files[1]} have the columns of their orders in {files[0]}" in lines


def test_chosen_columns_may_be_called_differently_in_two_files(tmp_path):
    files = write_files(tmp_path, log__csv="wer,was\nu,a\n", items__csv="nummer,bezeichnung\na,Pfanne\n")
    imported(tmp_path / "out", *files, columns={"user_id": ["wer"], "item_id": ["was", "nummer"], "title": ["bezeichnung"]})
    assert all_rows(tmp_path / "out", "items") == [{"item_id": "a", "title": "Pfanne"}]


def test_a_chosen_column_that_no_file_has_names_the_nearest(tmp_path):
    files = write_files(tmp_path, log__csv="customer_no,sku\nu,a\n", items__csv="sku,name\na,Pan\n")
    with pytest.raises(ValueError, match="user_id = 'customer_nr': no file has this column; the nearest is 'customer_no'"):
        imported(tmp_path / "out", *files, columns={"user_id": ["customer_nr"]})
    with pytest.raises(ValueError, match="'userid' is not a known column; the nearest is 'user_id'"):
        imported(tmp_path / "out", *files, columns={"userid": ["customer_no"]})


def test_without_titles_or_users_the_import_says_what_it_found(tmp_path):
    log, items = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=ITEMS)
    with pytest.raises(
        ValueError, match=r"no file has titles of items; found .*log\.csv: interactions, columns user_id, item_id"
    ):
        imported(tmp_path / "out", log)
    with pytest.raises(ValueError, match=r"no file says who used which item; found .*items\.csv: items, columns item_id, title"):
        imported(tmp_path / "out", items)


def test_items_of_another_kind_of_id_are_refused_and_known_ones_counted(tmp_path):
    log, items = write_files(tmp_path, log__csv="user_id,item_id\nu,a\nu,x\nu,x\n", items__csv=ITEMS)
    facts, lines = imported(tmp_path / "out", log, items)
    assert (facts["items_named"], facts["items_known"]) == (2, 1)
    assert "of 2 items of the interactions, 1 are in the catalogue" in lines
    log.write_text("user_id,item_id\nu,1\nu,2\n")
    with pytest.raises(
        ValueError, match=r"none of the 2 item ids of the interactions \(such as '1'\) is among the items \(such as 'a'\)"
    ):
        imported(tmp_path / "out2", log, items)


def test_an_id_that_is_new_in_every_row_is_no_user(tmp_path):
    log = "user_id,item_id\n" + "".join(f"r{number},a\n" for number in range(3000))
    with pytest.raises(ValueError, match=r"'user_id' has a different value in nearly every row"):
        imported(tmp_path / "out", *write_files(tmp_path, log__csv=log, items__csv=ITEMS))


def test_a_log_with_names_of_items_gives_the_items_too(tmp_path):
    log = (
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        "536365,85123A,WHITE HEART,6,12/1/2010 8:26,2.55,17850,UK\n536366,85123A,wrong,6,12/1/2010 8:28,2.55,17850,UK\n"
        "536367,85123A,WHITE HEART,6,12/1/2010 8:34,2.55,,UK\n536368,POST,,1,12/13/2010 8:34,18,13047,UK\n"
    )
    facts, _ = imported(tmp_path / "out", *write_files(tmp_path, online__csv=log))
    assert all_rows(tmp_path / "out", "items") == [
        {"item_id": "85123A", "title": "WHITE HEART", "price": 2.55, "currency": None},
        {"item_id": "POST", "title": None, "price": 18.0, "currency": None},
    ]
    assert facts["dropped"]["interactions"] == {"no user id": 1}
    assert [row["user_id"] for row in all_rows(tmp_path / "out", "interactions")] == ["17850", "17850", "13047"]


def test_a_position_is_used_only_where_no_user_has_one_twice(tmp_path):
    log, items = write_files(tmp_path, log__csv="user_id,item_id,position\nu,a,1\nu,b,0\n", items__csv=ITEMS)
    imported(tmp_path / "out", log, items)
    assert [row["position"] for row in all_rows(tmp_path / "out", "interactions")] == [1, 0]
    log.write_text("user_id,item_id,position\nu,a,1\nu,b,1\n")
    _, lines = imported(tmp_path / "out2", log, items)
    assert "position" not in all_rows(tmp_path / "out2", "interactions")[0]
    assert "note: position is not used: 0 rows have none and 1 share it with another row of their user" in lines


def test_of_a_file_and_an_address_of_a_picture_the_file_is_taken(tmp_path):
    items = "item_id,title,image_url,image_file\na,Pan,http://x/a.jpg,pics/a.jpg\nb,Pot,http://x/b.jpg,\n"
    imported(tmp_path / "out", *write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items))
    assert [(row["image_url"], row["image_file"]) for row in all_rows(tmp_path / "out", "items")] == [
        (None, str(tmp_path / "pics/a.jpg")),
        ("http://x/b.jpg", None),
    ]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_keep_the_order_of_their_files_though_many_threads_read_them(tmp_path, monkeypatch, form):
    """Rows of one time are ordered by their place in the file, so a shuffled import would be another history."""
    monkeypatch.setattr("digr.data.importing.tables.MAX_ROW", 1 << 12)  # each thread reads a few hundred rows
    monkeypatch.setattr("digr.data.importing.writing.INTERACTION_ROWS", 10_000)
    opened = writing.open_database

    @contextmanager
    def with_threads(*arguments, **options):
        with opened(*arguments, **options) as con:
            con.execute("SET threads = 8")
            yield con

    monkeypatch.setattr(writing, "open_database", with_threads)
    rng, folder = np.random.default_rng(0), tmp_path / "log"
    folder.mkdir()
    expected = []
    for part in range(5):
        users = [f"u{user}" for user in rng.integers(50, size=4_000 if part % 2 else 1_000)]
        items = [f"{part}-{at}" for at in range(len(users))]
        table = pa.table({"user_id": users, "item_id": items, "timestamp": [1_700_000_000] * len(users)})
        expected += list(zip(users, items, strict=True))
        path = folder / f"part-{part:05d}.{form}"
        if form == "parquet":
            pq.write_table(table, path, row_group_size=500)
        elif form == "csv":
            pacsv.write_csv(table, path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    titles = pa.table({"item_id": [item for _, item in expected], "title": ["T"] * len(expected)})
    pacsv.write_csv(titles, tmp_path / "items.csv")
    imported(tmp_path / "out", folder, tmp_path / "items.csv")
    found = pq.read_table(tmp_path / "out" / "interactions.parquet")
    assert list(zip(found["user_id"].to_pylist(), found["item_id"].to_pylist(), strict=True)) == expected
    assert pq.read_table(tmp_path / "out" / "items.parquet")["item_id"].equals(titles["item_id"])


def test_the_folders_of_files_with_images_are_told_for_those_who_read_the_images(tmp_path):
    (tmp_path / "raw" / "lists").mkdir(parents=True)
    orders = "user_id,item_id\nu,a\n"
    files = write_files(tmp_path / "raw" / "lists", log__csv=orders, items__csv="item_id,title,image\na,Pan,../pics/a.jpg\n")
    imported(tmp_path / "files", *files)
    imported(tmp_path / "folder", str(tmp_path / "raw"))
    assert image_folders(str(tmp_path / "files")) == (str(tmp_path / "files"), str(tmp_path / "raw" / "lists"))
    assert image_folders(str(tmp_path / "folder")) == (str(tmp_path / "folder"), str(tmp_path / "raw"))
    plain = write_files(tmp_path, log__csv=orders, items__csv="item_id,title\na,Pan\n")
    imported(tmp_path / "plain", *plain)
    assert image_folders(str(tmp_path / "plain")) == (str(tmp_path / "plain"),)


def test_the_common_form_with_splits_comes_back_as_it_was(tmp_path):
    out = tmp_path / "first"
    splits = tmp_path / "data" / "splits"
    splits.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": ["Pan", "Pot"]}), tmp_path / "data" / "items.parquet")
    log = pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "position": [0, 1]})
    pq.write_table(log, tmp_path / "data" / "interactions.parquet")
    for split in ("train", "valid", "test"):
        pq.write_table(pa.table({"user_id": ["u"], "history": [["a"]], "target": ["b"]}), splits / f"{split}.parquet")
    imported(out, tmp_path / "data")
    assert all_rows(out, "interactions") == log.to_pylist()
    assert all_rows(out, "splits/valid") == [{"user_id": "u", "history": ["a"], "target": "b"}]


def command(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.import_data", *map(str, words)], cwd=ROOT, capture_output=True, text=True, **options
    )


def test_the_command_ends_with_its_summary_and_a_mistake_exits_with_two(tmp_path):
    files = write_files(tmp_path, log__csv="wer,sku\nu,a\n", items__csv="sku,name\na,Pan\n")
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
    files = write_files(tmp_path, log__csv="wer,sku\nu,a\n", items__csv="sku,name\na,Pan\n")
    (tmp_path / "own.toml").write_text(
        f'[run]\ndir = "x"\n[data]\nsource = "parquet"\npath = "{tmp_path / "out"}"\n'
        '[data.columns]\nuser_id = "wer"\nitem_id = ["sku"]\n'
    )
    done = command(*files, "--config", tmp_path / "own.toml", "--check")
    assert done.returncode == 0, done.stderr
    assert "  wer -> user_id" in done.stdout
    assert not (tmp_path / "out").exists()
    assert command(*files, "--config", tmp_path / "own.toml").returncode == 0
    assert all_rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]
