"""Amazon Reviews, MovieLens, RecBole, LC-Rec and MiniOneRec are read as their makers publish them."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.readers.importing import imported, rows, seconds, write
from tests.real_data import real_folder


def test_amazon_of_2014_has_python_dicts_as_metadata(tmp_path):
    write(
        tmp_path / "in",
        {
            "reviews_Beauty_5.json": '{"reviewerID": "A1YJEY40YUW4SE", "asin": "7806397051", "helpful": [3, 4], "overall": 1.0, '
            '"reviewText": "Very oily", "summary": "No", "unixReviewTime": 1391040000, "reviewTime": "01 30, 2014"}\n',
            "meta_Beauty.json": "{'asin': '7806397051', 'title': \"WAWO's palette\", 'price': 14.5, 'imUrl': 'http://e/x.jpg', "
            "'categories': [['Beauty', 'Makeup'], ['Beauty', 'Face']], 'salesRank': {'Beauty': 5}, 'brand': None}\n"
            "{'asin': 'B000000001', 'description': 'No title'}\n{'asin': __import__('os').getcwd()}\n",
        },
    )
    facts, _ = imported(tmp_path / "out", tmp_path / "in")
    assert {file["format"] for file in facts["files"]} == {"amazon-2014"}
    assert seconds(tmp_path / "out") == [("A1YJEY40YUW4SE", "7806397051", 1391040000)]
    assert rows(tmp_path / "out", "items") == [
        {
            "item_id": "7806397051",
            "title": "WAWO's palette",
            "categories": ["Beauty", "Makeup", "Face"],
            "price": 14.5,
            "image_url": "http://e/x.jpg",
        },
        {"item_id": "B000000001", "description": "No title"},
    ]
    assert sum(table["unreadable_rows"] for table in facts["tables"]) == 1


@pytest.mark.parametrize("year", ["2014", "2018"])
def test_amazon_ratings_without_a_header_are_told_apart_by_their_ids(tmp_path, year):
    user, item = "A39HTATAQ9V7YF", "0205616461"
    line = ",".join([user, item] if year == "2014" else [item, user]) + ",5.0,1369699200"
    write(tmp_path / "in", {"Beauty.csv": line + "\n", "meta.json": "{'asin': '0205616461', 'title': 'Oil', 'categories': []}\n"})
    imported(tmp_path / "out", tmp_path / "in")
    assert rows(tmp_path / "out", "interactions")[0] | {"timestamp": 0} == {
        "user_id": user,
        "item_id": item,
        "rating": 5.0,
        "timestamp": 0,
    }


def test_amazon_of_2018_has_texts_in_lists_and_prices_as_texts(tmp_path):
    meta = {
        "category": ["Industrial", "Tape"], "description": ["Strong.", "Black."], "title": "Tape",
        "brand": "Gorilla", "asin": "B0009SPY04",
        "price": "$1,012.50", "imageURL": ["http://e/s.jpg"], "imageURLHighRes": ["http://e/l.jpg", "http://e/m.jpg"],
    }  # fmt: skip
    odd = meta | {"asin": "B000000002", "price": ".a-box-inner{background-color:#fff}", "imageURLHighRes": [], "description": []}
    review = {
        "overall": 4.0,
        "verified": True,
        "reviewerID": "A2",
        "asin": "B0009SPY04",
        "unixReviewTime": 1470700800,
        "style": {"Size:": " L"},
    }
    write(
        tmp_path / "in",
        {"meta.json": f"{json.dumps(meta)}\n{json.dumps(odd)}\n", "Industrial_5.json": json.dumps(review) + "\n"},
    )
    imported(tmp_path / "out", tmp_path / "in")
    first, second = rows(tmp_path / "out", "items")
    assert first == {
        "item_id": "B0009SPY04", "title": "Tape", "description": "Strong. Black.", "brand": "Gorilla",
        "categories": ["Industrial", "Tape"],
        "price": 1012.5, "image_url": "http://e/l.jpg",
    }  # fmt: skip
    assert "price" not in second
    assert "description" not in second
    assert second["image_url"] == "http://e/s.jpg"


def test_amazon_of_2023_goes_by_the_parent(tmp_path):
    images = [{"thumb": "http://e/t.jpg", "large": "http://e/l.jpg", "variant": "MAIN", "hi_res": None}]
    meta = {
        "main_category": "All Beauty", "title": "Oil", "features": ["Soft"], "description": [], "price": 9.99, "images": images,
        "store": "Shiny", "categories": [], "parent_asin": "B0PARENT01", "details": {"Brand": "x"},
    }  # fmt: skip
    review = {
        "rating": 5.0,
        "title": "Nice",
        "text": "ok",
        "images": [],
        "asin": "B0CHILD001",
        "parent_asin": "B0PARENT01",
        "user_id": "AE1",
        "timestamp": 1588687728923,
    }
    write(
        tmp_path / "in",
        {"meta_All.jsonl": json.dumps(meta | {"price": "from 13.83"}) + "\n", "All.jsonl": json.dumps(review) + "\n"},
    )
    imported(tmp_path / "out", tmp_path / "in")
    assert seconds(tmp_path / "out") == [("AE1", "B0PARENT01", 1588687728.923)]
    assert rows(tmp_path / "out", "items") == [
        {
            "item_id": "B0PARENT01",
            "title": "Oil",
            "description": "Soft",
            "brand": "Shiny",
            "categories": ["All Beauty"],
            "price": 13.83,
            "image_url": "http://e/l.jpg",
        }
    ]


def test_the_five_core_of_amazon_2023_is_a_csv_of_the_same_columns(tmp_path):
    meta = {"parent_asin": "B0PARENT01", "title": "Oil", "store": None, "categories": ["Beauty"]}
    write(
        tmp_path / "in",
        {
            "All.csv": "user_id,parent_asin,rating,timestamp\nAE1,B0PARENT01,5.0,1588687728923\n",
            "meta.jsonl": json.dumps(meta) + "\n",
        },
    )
    imported(tmp_path / "out", tmp_path / "in")
    assert seconds(tmp_path / "out") == [("AE1", "B0PARENT01", 1588687728.923)]


def test_movielens_100k_has_genres_as_flags_in_latin_1(tmp_path):
    flags = "|".join("1" if genre in (3, 4) else "0" for genre in range(19))
    write(
        tmp_path / "ml-100k",
        {
            "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
            "u.item": f'242|Misérables, Les (1995)|01-Jan-1995||http://imdb/x|{flags}\n302|"Quoted" (1996)|||x|{flags}\n'.encode(
                "latin-1"
            ),
            "u.user": "1|24|M|technician|85711\n",
            "u.genre": "unknown|0\nAction|1\n",
            "ua.base": "1\t1\t5\t874965758\n",
            "README": "MovieLens\n",
        },
    )
    _, lines = imported(tmp_path / "out", tmp_path / "ml-100k")
    assert seconds(tmp_path / "out") == [("196", "242", 881250949), ("186", "302", 891717742)]
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "242", "title": "Misérables, Les (1995)", "categories": ["Animation", "Children's"]},
        {"item_id": "302", "title": '"Quoted" (1996)', "categories": ["Animation", "Children's"]},
    ]
    assert any("u.user: users, tags, links and ready-made splits of MovieLens are not read" in line for line in lines)


def test_movielens_1m_has_double_colons(tmp_path):
    write(
        tmp_path / "ml-1m",
        {
            "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n",
            "movies.dat": '661::James and the Giant Peach (1996)::Animation|Musical\n1193::Café: "x" (1975)::Drama\n'.encode(
                "latin-1"
            ),
            "users.dat": "1::F::1::10::48067\n",
        },
    )
    imported(tmp_path / "out", tmp_path / "ml-1m")
    assert seconds(tmp_path / "out") == [("1", "1193", 978300760), ("1", "661", 978302109)]
    assert rows(tmp_path / "out", "items")[1] == {"item_id": "1193", "title": 'Café: "x" (1975)', "categories": ["Drama"]}


def test_movielens_latest_is_csv(tmp_path):
    write(
        tmp_path / "ml-latest-small",
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n",
            "movies.csv": 'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n2,Odd,(no genres listed)\n',
            "links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n",
            "tags.csv": "userId,movieId,tag,timestamp\n2,1,funny,1445714994\n",
        },
    )
    facts, _ = imported(tmp_path / "out", tmp_path / "ml-latest-small")
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "1", "title": "American President, The (1995)", "categories": ["Comedy", "Drama"]},
        {"item_id": "2", "title": "Odd"},
    ]
    assert facts["rows"] == {"interactions": 1, "items": 2}


def test_atomic_files_of_recbole_have_types_in_their_header(tmp_path):
    write(
        tmp_path / "ml",
        {
            "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n0196\t242\t3\t881250949\n",
            "ml.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            '242\t"Kolya" 5.5" cut\t1996\tComedy Children\'s\n',
            "ml.user": "user_id:token\tage:token\n196\t49\n",
        },
    )
    imported(tmp_path / "out", tmp_path / "ml")
    assert seconds(tmp_path / "out") == [("0196", "242", 881250949)]
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "242", "title": '"Kolya" 5.5" cut', "categories": ["Comedy", "Children's"]}
    ]


def test_atomic_files_may_have_another_delimiter(tmp_path):
    """RecBole's `field_separator` may be a comma; the file was read as one column, and every row was left out."""
    files = {"d.inter": "user_id:token,item_id:token\n1,2\n", "d.item": "item_id:token,title:token_seq\n2,A pan\n"}
    imported(tmp_path / "out", write(tmp_path / "in", files))
    assert rows(tmp_path / "out", "interactions") == [{"user_id": "1", "item_id": "2"}]
    assert rows(tmp_path / "out", "items") == [{"item_id": "2", "title": "A pan"}]


LCREC = {
    "Ins.inter.json": '{\n "0": [0, 1, 0],\n "1": [1]\n}',
    "Ins.item.json": json.dumps(
        {"0": {"title": "Strings", "description": "['Bright.', \"Long's.\"]", "brand": "EB",
               "categories": "Music,Tapes, Picks & More,Strings"},
         "1": {"title": "Drum", "description": "", "brand": "", "categories": ""}}
    ),
    "Ins.index.json": '{"0": ["<a_1>", "<b_2>"]}',
}  # fmt: skip


@pytest.mark.parametrize("numbered", [True, False])
def test_lc_rec_lists_items_of_users_in_their_order(tmp_path, numbered):
    ids = {} if numbered else {"Ins.item2id": "B000A\t0\nB000B\t1\n", "Ins.user2id": "AX\t0\nAY\t1\n"}
    write(tmp_path / "in", LCREC | ids)
    imported(tmp_path / "out", tmp_path / "in")
    (first, second), (user, other) = (("0", "1"), ("0", "1")) if numbered else (("B000A", "B000B"), ("AX", "AY"))
    assert rows(tmp_path / "out", "interactions") == [
        {"user_id": user, "item_id": first, "position": 0},
        {"user_id": user, "item_id": second, "position": 1},
        {"user_id": user, "item_id": first, "position": 2},
        {"user_id": other, "item_id": second, "position": 0},
    ]
    assert rows(tmp_path / "out", "items") == [
        {
            "item_id": first,
            "title": "Strings",
            "description": "Bright. Long's.",
            "brand": "EB",
            "categories": ["Music", "Tapes, Picks & More", "Strings"],
        },
        {"item_id": second, "title": "Drum"},
    ]


def test_a_large_json_object_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("digr.data.importing.converting.CHUNK", 7)
    write(tmp_path / "in", LCREC)
    imported(tmp_path / "out", tmp_path / "in")
    assert len(rows(tmp_path / "out", "interactions")) == 4
    write(tmp_path / "in", {"Ins.inter.json": '{"0": [0, 1], "1": [1'})
    with pytest.raises(ValueError, match=r"Ins\.inter\.json: not valid JSON"):
        imported(tmp_path / "out2", tmp_path / "in")


MINIONEREC = {
    "train": 'A7,"[\'Tape\', \'Pan ""5""\']",Pot,"[0, 1]",2,"[\'<a_1>\', \'<a_2>\']",<a_3>\n'
    "A8,['Pot'],Tape,[2],0,['<a_3>'],<a_1>\n",
    "valid": "A7,\"['Tape', 'Pan', 'Pot']\",Pot,\"[0, 1, 2]\",2,['x'],<a_3>\n",
    "test": "A8,\"['Pot', 'Tape']\",Pan,\"[2, 0]\",1,['x'],<a_2>\n",
}
HEAD = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
NAME = "Ins_5_2016-10-2018-11"


def test_minionerec_has_splits_whose_rows_make_the_interactions(tmp_path):
    files = {f"{split}/{NAME}.csv": HEAD + body for split, body in MINIONEREC.items()}
    info = '<a_1>\tTape "x" 1/2"\t0\n<a_2>\t"Pan\t1\n<a_3>\tPot\t2\n'
    write(tmp_path / "in", files | {f"info/{NAME}.txt": info})
    facts, _ = imported(tmp_path / "out", tmp_path / "in")
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "0", "title": 'Tape "x" 1/2"'},
        {"item_id": "1", "title": '"Pan'},
        {"item_id": "2", "title": "Pot"},
    ]
    assert rows(tmp_path / "out", "splits/train") == [
        {"user_id": "A7", "history": ["0", "1"], "target": "2"},
        {"user_id": "A8", "history": ["2"], "target": "0"},
    ]
    assert rows(tmp_path / "out", "splits/test") == [{"user_id": "A8", "history": ["2", "0"], "target": "1"}]
    assert [(row["user_id"], row["item_id"], row["position"]) for row in rows(tmp_path / "out", "interactions")] == [
        ("A7", "0", 0), ("A7", "1", 1), ("A7", "2", 2), ("A7", "2", 3), ("A8", "2", 0), ("A8", "0", 1), ("A8", "1", 2),
    ]  # fmt: skip
    assert facts["rows"] == {"items": 3, "splits/train": 2, "splits/valid": 1, "splits/test": 1, "interactions": 7}


def test_item_json_goes_before_the_titles_of_info(tmp_path):
    files = {f"{split}/{NAME}.csv": HEAD + body for split, body in MINIONEREC.items()}
    items = {str(number): {"title": f"T{number}", "description": "['D']", "brand": "B", "categories": ""} for number in range(3)}
    write(tmp_path / "in", files | {f"info/{NAME}.txt": "<a_1>\tx\t0\n", "index/Ins.item.json": json.dumps(items)})
    imported(tmp_path / "out", tmp_path / "in")
    assert rows(tmp_path / "out", "items")[0] == {"item_id": "0", "title": "T0", "description": "D", "brand": "B"}


@pytest.fixture(scope="module")
def public() -> Path:
    folder = os.environ.get("DIGR_MINIONEREC", "")
    if not folder:
        pytest.skip("the public files of MiniOneRec are absent (set DIGR_MINIONEREC)")
    return Path(folder)


def test_the_public_files_of_minionerec_give_the_data_folder_row_by_row(tmp_path, public):
    """The folder holds Industrial_and_Scientific.{train,valid,test}.inter, .inter.json and .item.json of the repositories.

    They number users; the CSV files and the data folder write an A before the number.
    """
    expected = Path(real_folder("amazon18_industrial_minionerec"))
    names = ("train.inter", "valid.inter", "test.inter", "inter.json", "item.json")
    imported(tmp_path / "out", *(public / f"Industrial_and_Scientific.{name}" for name in names))
    for split in ("train", "valid", "test"):
        found = pq.read_table(tmp_path / "out" / "splits" / f"{split}.parquet").to_pylist()
        wanted = pq.read_table(expected / "splits" / f"{split}.parquet").to_pylist()
        assert [row | {"user_id": f"A{row['user_id']}"} for row in found] == wanted
    found = [(f"A{row['user_id']}", row["item_id"], row["position"]) for row in rows(tmp_path / "out", "interactions")]
    wanted = [(row["user_id"], row["item_id"], row["position"]) for row in rows(expected, "interactions")]
    assert sorted(found) == sorted(wanted)
    items = {row["item_id"]: row for row in rows(tmp_path / "out", "items")}
    for row in rows(expected, "items"):
        assert items[row["item_id"]]["title"] == row["title_raw"]
        assert items[row["item_id"]].get("description") == row.get("description_raw") or None
        assert items[row["item_id"]].get("brand") == row.get("brand")


def test_the_industrial_set_written_as_minionerec_does_comes_back_row_by_row(tmp_path):
    import csv

    expected = Path(real_folder("amazon18_industrial_minionerec"))
    items = pq.read_table(expected / "items.parquet").to_pylist()
    for split in ("train", "valid", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        with (tmp_path / "in" / split / f"{NAME}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(HEAD.strip().split(","))
            for row in pq.read_table(expected / "splits" / f"{split}.parquet").to_pylist():
                history = [int(item) for item in row["history"]]
                titles = [items[item]["title_raw"] for item in history]
                target = int(row["target"])
                writer.writerow([row["user_id"], titles, items[target]["title_raw"], history, target, ["<a_1>"], "<a_1>"])
    (tmp_path / "in" / "info").mkdir()
    lines = "".join(f"<a_1>\t{row['title_raw']}\t{row['item_id']}\n" for row in items)
    (tmp_path / "in" / "info" / f"{NAME}.txt").write_text(lines)
    imported(tmp_path / "out", tmp_path / "in")
    for split in ("train", "valid", "test"):
        found = pq.read_table(tmp_path / "out" / "splits" / f"{split}.parquet")
        assert found.to_pylist() == pq.read_table(expected / "splits" / f"{split}.parquet").to_pylist()
    found = [(row["user_id"], row["position"], row["item_id"]) for row in rows(tmp_path / "out", "interactions")]
    wanted = [(row["user_id"], row["position"], row["item_id"]) for row in rows(expected, "interactions")]
    assert sorted(found) == sorted(wanted)
    assert [(row["item_id"], row["title"]) for row in rows(tmp_path / "out", "items")] == [
        (row["item_id"], row["title_raw"]) for row in items
    ]
