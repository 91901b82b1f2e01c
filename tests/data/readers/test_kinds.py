"""Encodings, delimiters, JSON, Parquet, archives, the web and S3: a table reads the same from all of them."""

import bz2
import csv
import gzip
import http.server
import io
import json
import lzma
import tarfile
import threading
import zipfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.buckets import serve_bucket
from tests.data.readers.importing import ITEMS, all_rows, imported, write_files


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "gb18030", "cp1250", "cp1251", "shift_jis"]
)
def test_encodings_are_found_out(tmp_path, encoding):
    words = {"gb18030": "不锈钢平底锅 厨房用品 家用电器", "cp1250": "Żółta łąka, źdźbło", "cp1251": "Сковорода чугунная"}
    words["shift_jis"] = "フライパン 鉄製 キッチン"
    title = words.get(encoding, "Crème brûlée, façade, naïve, Müller, garçon")
    items = "item_id;title\n" + "".join(f"{item};{title}\n" for item in "ab")
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items.encode(encoding))
    imported(tmp_path / "out", *files)
    assert all_rows(tmp_path / "out", "items")[0] == {"item_id": "a", "title": title}


def test_an_encoding_is_judged_by_the_whole_file(tmp_path):
    items = "item_id,title\n" + "".join(f"i{number},Plain pan\n" for number in range(100_000)) + "a,Crème brûlée\n"
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items.encode("latin-1"))
    imported(tmp_path / "out", *files)
    assert all_rows(tmp_path / "out", "items")[-1] == {"item_id": "a", "title": "Crème brûlée"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found_out_and_said(tmp_path, delimiter):
    items = f"item_id{delimiter}title\na{delimiter}6 inch pan\nb{delimiter}Pot\n"
    _, lines = imported(tmp_path / "out", *write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items))
    said = "tab" if delimiter == "\t" else delimiter
    assert any(f"items.csv: names, items; csv, utf-8, delimiter {said!r}, 2 rows" in line for line in lines)
    assert all_rows(tmp_path / "out", "items")[0] == {"item_id": "a", "title": "6 inch pan"}


def test_commas_in_every_price_and_title_do_not_make_them_the_delimiter(tmp_path):
    items = "sku;name;price\n" + "".join(f"i{number};Pan, iron, 28 cm;9,99 EUR\n" for number in range(50))
    imported(tmp_path / "out", *write_files(tmp_path, log__csv="user_id,item_id\nu,i0\n", items__csv=items))
    assert all_rows(tmp_path / "out", "items")[0] == {
        "item_id": "i0",
        "title": "Pan, iron, 28 cm",
        "price": 9.99,
        "currency": "EUR",
    }


def test_few_rows_with_another_number_of_columns_are_counted_and_many_are_an_error(tmp_path):
    good = "".join(f"u{number % 7},a\n" for number in range(40))
    files = write_files(tmp_path, log__csv=f"user_id,item_id\n{good}u,a,b,c\nu\n", items__csv=ITEMS)
    facts, lines = imported(tmp_path / "out", *files)
    assert facts["rows"]["interactions"] == 40
    assert facts["tables"][0]["unreadable_rows"] == 2
    assert any("2 that cannot be read and are left out (line 42:" in line for line in lines)
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\nu,b\nu,a,b\nu\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match=r"log\.csv: 2 of 4 rows cannot be read, so the file is broken; first: line 4"):
        imported(tmp_path / "out2", *files)


def test_quoted_cells_hold_line_ends_and_delimiters(tmp_path):
    items = 'item_id,title,description\r\na,"Pan, big","First line\r\nsecond ""line"""\r\nb,Pot,\r\n'
    imported(tmp_path / "out", *write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=items))
    assert all_rows(tmp_path / "out", "items")[0] == {
        "item_id": "a", "title": "Pan, big", "description": 'First line\r\nsecond "line"'
    }  # fmt: skip


def test_json_lines_keep_numbers_as_they_are_and_read_what_comes_late(tmp_path):
    items = "".join(json.dumps({"item_id": f"i{number}", "title": "T", "price": None}) + "\n" for number in range(10_000))
    items += '{"item_id": "00123", "title": "late", "price": 2.5, "categories": [["A", "B"], ["A", "C"]]}\nnot json\n'
    log = '{"user_id": 12345678901234567890123, "item_id": "00123"}\n{"user_id": "00123", "item_id": 7}\n'
    facts, _ = imported(tmp_path / "out", *write_files(tmp_path, log__jsonl=log, items__jsonl=items))
    assert [(row["user_id"], row["item_id"]) for row in all_rows(tmp_path / "out", "interactions")] == [
        ("12345678901234567890123", "00123"),
        ("00123", "7"),
    ]
    last = all_rows(tmp_path / "out", "items")[-1]
    assert (last["item_id"], last["price"], last["categories"]) == ("00123", 2.5, ["A", "B", "C"])
    assert facts["tables"][1]["unreadable_rows"] == 1


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_key_inside_the_json_of_a_column_may_be_chosen(tmp_path, form):
    log = [
        {"reviewer": {"id": "00123", "x/y": {"at": 1700000000}}, "item": {"sku": "a"}, "n.m": "1"},
        {"reviewer": {"id": 12345678901234567890123}, "item": {"sku": "b"}, "n.m": "2"},
        {"reviewer": "nobody", "item": {"sku": "b"}, "n.m": "3"},
    ]
    cells = [{name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()} for row in log]
    if form == "jsonl":
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    elif form == "csv":
        with (tmp_path / "log.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(cells[0]))
            writer.writeheader()
            writer.writerows(cells)
    else:
        pq.write_table(pa.Table.from_pylist(cells), tmp_path / "log.parquet")
    items = write_files(tmp_path, items__jsonl='{"item_id": "a", "title": "Pan", "images": [{"large": "http://x/l.jpg"}]}\n')
    columns = {
        "user_id": ["reviewer.id"], "item_id": ["item.sku", "item_id"], "timestamp": ["reviewer.x/y.at"], "position": ["n.m"],
        "image_url": ["images.0.large"],
    }  # fmt: skip
    facts, lines = imported(tmp_path / "out", tmp_path / f"log.{form}", *items, columns=columns)
    assert [(row["user_id"], row["item_id"], row["position"]) for row in all_rows(tmp_path / "out", "interactions")] == [
        ("00123", "a", 1),
        ("12345678901234567890123", "b", 2),
    ]
    assert all_rows(tmp_path / "out", "interactions")[0]["timestamp"] == datetime.fromtimestamp(1700000000, UTC)
    assert all_rows(tmp_path / "out", "items")[0]["image_url"] == "http://x/l.jpg"
    assert facts["dropped"]["interactions"] == {"no user id": 1}
    assert "  reviewer.id -> user_id" in lines
    with pytest.raises(ValueError, match=r"user_id = 'reviewer\.name': no file has this column; the nearest is"):
        imported(tmp_path / "out2", tmp_path / f"log.{form}", *items, columns=columns | {"user_id": ["reviewer.name"]})


def test_one_json_array_is_read(tmp_path):
    files = write_files(
        tmp_path,
        log__json='[\n  {"user_id": "u", "item_id": "a"},\n  {"user_id": "v", "item_id": "b"}\n]\n',
        items__json='[{"item_id":"a","title":"Pan"},{"item_id":"b","title":"Pot"}]',
    )
    imported(tmp_path / "out", *files)
    assert [row["user_id"] for row in all_rows(tmp_path / "out", "interactions")] == ["u", "v"]


def test_shards_of_parquet_may_differ_in_type_and_lists_stay_lists(tmp_path):
    first = pa.table({"item_id": ["a"], "title": ["Pan"], "image_url": pa.nulls(1), "categories": [["A", "B"]]})
    second = pa.table({"item_id": ["b"], "title": ["Pot"], "image_url": ["http://x/b.jpg"], "categories": [["C"]]})
    pq.write_table(first, tmp_path / "items-00000-of-00002.parquet")
    pq.write_table(second, tmp_path / "items-00001-of-00002.parquet")
    pq.write_table(pa.table({"user_id": [1.0, 2.0, None], "item_id": ["a", "b", "b"]}), tmp_path / "log.parquet")
    facts, _ = imported(tmp_path / "out", *sorted(tmp_path.glob("*.parquet")))
    assert [(row["categories"], row["image_url"]) for row in all_rows(tmp_path / "out", "items")] == [
        (["A", "B"], None),
        (["C"], "http://x/b.jpg"),
    ]
    assert [row["user_id"] for row in all_rows(tmp_path / "out", "interactions")] == ["1", "2"]
    assert facts["dropped"]["interactions"] == {"no user id": 1}


def test_times_of_parquet_keep_their_moment(tmp_path):
    moments = [datetime(2024, 1, 2, 3, 4, 5, 678000, UTC), datetime(2024, 7, 2, tzinfo=UTC)]
    for kind in (pa.timestamp("ns"), pa.timestamp("us", tz="Europe/Berlin"), pa.timestamp("s"), pa.int64(), pa.float64()):
        table = pa.table({"user_id": ["u", "v"], "item_id": ["a", "b"]})
        if pa.types.is_timestamp(kind):
            times = pa.array(moments, pa.timestamp("us", tz="UTC")).cast(kind, safe=False)
        else:
            times = pa.array([int(moment.timestamp() * 1000) for moment in moments], pa.int64()).cast(kind)
        pq.write_table(table.append_column("timestamp", times), tmp_path / "log.parquet")
        imported(tmp_path / "out", tmp_path / "log.parquet", *write_files(tmp_path, items__csv=ITEMS), force=True)
        cut = [moment.replace(microsecond=0) for moment in moments] if kind == pa.timestamp("s") else moments
        assert [row["timestamp"] for row in all_rows(tmp_path / "out", "interactions")] == cut, kind


def test_what_is_neither_text_nor_parquet_is_named(tmp_path):
    (tmp_path / "log.csv").write_bytes(bz2.compress(b"user_id,item_id\nu,a\n"))
    with pytest.raises(ValueError, match=r"log\.csv: neither text nor Parquet; packed files need a usual ending"):
        imported(tmp_path / "out", tmp_path / "log.csv")


def test_pictures_beside_the_tables_are_left_alone_and_counted(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_files(folder, log__csv="user_id,item_id\nu,a\n", items__csv=ITEMS, one__jpg=b"\xff\xd8\xff", two__jpg=b"\xff\xd8\xff")
    _, lines = imported(tmp_path / "out", folder)
    assert f"note: 2 files hold no table and are not read, such as {folder}/one.jpg" in lines


def test_a_folder_of_parts_is_one_table_in_the_order_of_its_names(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    for number, user in enumerate("xyz"):
        (folder / f"part-{number:05d}-6f1c-c000.csv").write_text(f"user_id,item_id\n{user},a\n")
    (folder / "_SUCCESS").write_text("")
    (folder / ".part-00000.crc").write_bytes(b"\0\1")
    facts, _ = imported(tmp_path / "out", folder, *write_files(tmp_path, items__csv=ITEMS))
    assert [row["user_id"] for row in all_rows(tmp_path / "out", "interactions")] == ["x", "y", "z"]
    assert facts["tables"][0]["files"].endswith("part-00000-6f1c-c000.csv and 2 more")


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda plain: pa.compress(plain, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", [*PACKERS, ".zip", ".tar", ".tgz", *(f".tar{ending}" for ending in PACKERS)])
def test_packed_files_are_read(tmp_path, ending):
    contents = {"data/log.csv": b"user_id,item_id\nu,a\n", "data/items.csv": ITEMS.encode()}
    if ending in PACKERS:
        files = []
        for name, content in contents.items():
            files.append(tmp_path / f"{Path(name).name}{ending}")
            half = len(content) // 2  # packed in two pieces, as parallel packers and `cat a.gz b.gz` do
            files[-1].write_bytes(PACKERS[ending](content[:half]) + PACKERS[ending](content[half:]))
    else:
        files = [tmp_path / f"all{ending.upper() if ending == '.tgz' else ending}"]
        _pack(files[0], contents)
    imported(tmp_path / "out", *files)
    assert all_rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]


def test_packed_members_of_an_archive_are_read(tmp_path):
    _pack(
        tmp_path / "all.zip",
        {"log.csv.zst": PACKERS[".zst"](b"user_id,item_id\nu,a\n"), "items.csv.xz": lzma.compress(ITEMS.encode())},
    )
    imported(tmp_path / "out", tmp_path / "all.zip")
    assert all_rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]


def _pack(path: Path, contents: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    packed = {".tgz": gzip.compress, ".tar": bytes} | PACKERS
    path.write_bytes(packed[path.suffix.lower()](plain.getvalue()))


@pytest.mark.parametrize("pack", ["zip", "tar.gz"])
def test_members_that_point_out_of_the_folder_write_nothing_there(tmp_path, pack):
    inner = tmp_path / "inner"
    inner.mkdir()
    _pack(inner / f"all.{pack}", {"../../evil.csv": b"user_id,item_id\nu,a\n", "/items.csv": ITEMS.encode()})
    imported(inner / "out", inner / f"all.{pack}")
    assert not list(tmp_path.rglob("evil.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner"]


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("digr.data.importing.fetching.FREE_BYTES", 1 << 20)
    _pack(tmp_path / "bomb.zip", {"log.csv": b"a" * (8 << 20)})
    with pytest.raises(ValueError, match=r"bomb\.zip: unpacks to more than 200 times its size"):
        imported(tmp_path / "out", tmp_path / "bomb.zip")


@pytest.mark.parametrize("ending", PACKERS)
def test_a_packed_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("digr.data.importing.fetching.FREE_BYTES", 1 << 20)
    monkeypatch.setattr("digr.data.importing.fetching.MAX_RATIO", 20)
    (tmp_path / f"log.csv{ending}").write_bytes(PACKERS[ending](b"a" * (8 << 20)))
    with pytest.raises(ValueError, match=rf"log\.csv{ending}: unpacks to more than 20 times its size"):
        imported(tmp_path / "out", tmp_path / f"log.csv{ending}")


@pytest.mark.parametrize("ending", PACKERS)
def test_a_broken_archive_is_named(tmp_path, ending):
    whole = PACKERS[ending](b"user_id,item_id\n" + b"".join(b"u%d,a\n" % (number * 7919) for number in range(10_000)))
    for name, content in {
        f"log.csv{ending}": whole[:-100],
        f"x.csv{ending}": b"no archive",
        "o.zip": b"PK\x03\x04 broken",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: the archive is broken"):
            imported(tmp_path / "out", tmp_path / name)


@pytest.mark.parametrize("address", ["gs://bucket/x.csv", "hf://datasets/x"])
def test_other_schemes_are_refused_by_name(tmp_path, address):
    with pytest.raises(
        ValueError, match=rf"{address}: {address[:2]}:// cannot be read here; expected a local path, http\(s\):// or s3://"
    ):
        imported(tmp_path / "out", address)


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
    imported(tmp_path / "out", f"{address}/log.csv.gz", f"{address}/items.csv?version=2")
    assert all_rows(tmp_path / "out", "items") == [
        {"item_id": "a", "title": "Pan", "image_url": f"{address}/pics/a.jpg", "image_file": None}
    ]
    with pytest.raises(ValueError, match=r"/none\.csv: not fetched: .*404"):
        imported(tmp_path / "out2", f"{address}/none.csv")


@pytest.fixture(scope="module")
def bucket():
    """Serve one empty bucket on loopback."""
    with serve_bucket("shop") as address:
        yield address


def test_an_import_reads_from_s3_and_writes_there(tmp_path, bucket):
    client = boto3.client("s3")
    client.put_object(Bucket="shop", Key="raw/log/part-00000.csv", Body=b"user_id,item_id\nu,a\n")
    client.put_object(Bucket="shop", Key="raw/log/_SUCCESS", Body=b"")
    client.put_object(Bucket="shop", Key="raw/items.csv", Body=ITEMS.encode())
    imported(f"{bucket}/out", f"{bucket}/raw/log", f"{bucket}/raw/items.csv")
    assert all_rows(f"{bucket}/out", "interactions") == [{"user_id": "u", "item_id": "a"}]
    with pytest.raises(ValueError, match="exists already"):
        imported(f"{bucket}/out", f"{bucket}/raw")
    imported(f"{bucket}/out", f"{bucket}/raw", force=True)
    with pytest.raises(ValueError, match="s3://shop/none: no such file or folder"):
        imported(tmp_path / "out", f"{bucket}/none")
