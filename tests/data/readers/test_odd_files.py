"""What files of others hold beside a table: doubled names, lines for Excel, empty parts, pages to log in, links to themselves."""

import gzip
import http.server
import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.importing import ITEMS, all_rows, imported, rows, write, write_files

LOG = "user_id,item_id\nu,a\n"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_whose_name_comes_twice_is_said_and_the_second_can_be_chosen(tmp_path, form):
    """The first was read and the second shown as the example, without a word."""
    names, row = ["user_id", "item_id", "item_id", ""], ["u", "x", "a", "7"]
    if form == "csv":
        write(tmp_path, {"log.csv": ",".join(names) + "\n" + ",".join(row) + "\n"})
    else:
        pq.write_table(pa.table([pa.array([cell]) for cell in row], names=names), tmp_path / "log.parquet")
    files = [tmp_path / f"log.{form}", *write_files(tmp_path, items__csv="item_id,title\nx,Ex\na,Ay\n")]
    _, lines = imported(tmp_path / "out", *files)
    assert all_rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "x"}]
    assert "  columns of the same name as one before them: item_id (2); --columns OURS='item_id (2)' reads this one" in lines
    assert "  not used: item_id (2), column4" in lines
    assert "  before: user_id='u', item_id='x', item_id (2)='a', column4='7'" in lines
    imported(tmp_path / "out2", *files, columns={"item_id": ["item_id (2)"], "title": ["title"]}, check=False)
    assert all_rows(tmp_path / "out2", "interactions") == [{"user_id": "u", "item_id": "a"}]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_table_of_very_many_columns_is_refused_at_once(tmp_path, form):
    """A header of 100,000 names took five minutes and all memory."""
    names = [f"f{number}" for number in range(2_001)]
    log = ",".join(names) + "\n" if form == "csv" else json.dumps(dict.fromkeys(names, 1)) + "\n{}\n"
    files = write_files(tmp_path, **{f"log__{form}": log}, items__csv=ITEMS)
    with pytest.raises(
        ValueError, match=rf"log\.{form}: has more than 2,000 columns; expected a row for each interaction or item"
    ):
        imported(tmp_path / "out", *files)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("sep=;\r\nuser_id;item_id\r\nu;a\r\n", "log.csv: names, interactions; csv, utf-8, delimiter ';', 1 rows"),
        ("user_id item_id rating\nu a 5\n", "log.csv: names, interactions; csv, utf-8, delimiter ' ', 1 rows"),
    ],
)
def test_the_line_for_excel_is_no_header_and_spaces_may_separate(tmp_path, log, said):
    _, lines = imported(tmp_path / "out", *write_files(tmp_path, log__csv=log, items__csv=ITEMS))
    assert f"{tmp_path}/{said}" in lines
    assert [(row["user_id"], row["item_id"]) for row in all_rows(tmp_path / "out", "interactions")] == [("u", "a")]


def test_empty_files_inside_a_folder_are_counted_and_a_given_one_is_refused(tmp_path):
    """Spark writes parts without rows as empty files; one of them stopped the import."""
    folder = write(
        tmp_path / "in", {"log/part-0.csv": "", "log/part-1.csv": LOG, "items.csv": ITEMS, "note.txt": "Hi all,\nbye\n"}
    )
    _, lines = imported(tmp_path / "out", folder)
    assert f"note: 2 files hold no table and are not read, such as {folder}/log/part-0.csv" in lines
    with pytest.raises(ValueError, match=r"part-0\.csv: the file is empty"):
        imported(tmp_path / "out2", folder / "log" / "part-0.csv", folder / "items.csv")
    with pytest.raises(
        ValueError, match=r"no file says who used which item; found .*items\.csv: items, .*; \S+part-0\.csv: no table"
    ):
        (folder / "log" / "part-1.csv").unlink()
        imported(tmp_path / "out2", folder)


def test_a_file_given_twice_is_read_once_and_links_to_folders_are_not_followed(tmp_path):
    folder = write(tmp_path / "in", {"log.csv": LOG, "items.csv": ITEMS})
    (folder / "again").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "gone.csv").symlink_to("/nowhere/gone.csv")
    (folder / "newest.csv").symlink_to(folder / "log.csv")
    _, lines = imported(tmp_path / "out", folder, folder / "log.csv")
    assert all_rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]
    assert {f"{folder}/newest.csv: the same file as {folder}/log.csv, read once",
            f"{folder}/log.csv: the same file as {folder}/log.csv, read once"} <= set(lines)  # fmt: skip


def test_ids_that_do_not_meet_are_shown_from_both_sides(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,10.0\n", items__csv="item_id,title\n10,Pan\n")
    message = r"none of the 1 item ids of the interactions \(such as '10\.0'\) is among the items \(such as '10'\)"
    with pytest.raises(ValueError, match=message):
        imported(tmp_path / "out", *files)


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers as servers do that move, break off, or want a log-in."""

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        packed = gzip.compress(LOG.encode())
        cut = {"Content-Length": "5000"}
        told = {"Content-Disposition": "attachment; filename*=UTF-8''../../log.csv.gz", "Content-Length": str(len(packed))}
        code, headers, body = {
            "/moved": (302, {"Location": "/log.csv?token=secret"}, b""),
            "/around": (302, {"Location": "/around"}, b""),
            "/local": (302, {"Location": "file:///etc/passwd"}, b""),
            "/cut.csv": (200, cut, LOG.encode()),
            "/page.csv": (200, {}, b"<!DOCTYPE html><html><body>Log in</body></html>"),
            "/download": (200, told, packed),
            "/log.csv": (200, {}, LOG.encode()),
        }.get(self.path.partition("?")[0], (404, {}, b""))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server():
    """Serve on loopback."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{served.server_port}"
    served.shutdown()


@pytest.mark.parametrize("path", ["moved", "download?id=1", "log.csv?signature=a/b.zip"])
def test_downloads_follow_moves_and_take_the_name_that_they_are_told(tmp_path, server, path):
    facts, _ = imported(tmp_path / "out", f"http://me:secret@{server}/{path}", *write_files(tmp_path, items__csv=ITEMS))
    assert rows(tmp_path / "out", "interactions") == [{"user_id": "u", "item_id": "a"}]
    # the facts are written beside the data: no password, no signature
    assert facts["files"][0]["file"] == f"http://{server}/{path.partition('?')[0]}"
    assert sorted(each.name for each in Path(tmp_path).iterdir()) == ["items.csv", "out"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("around", "not fetched: Exceeded maximum allowed redirects"),
        ("local", "not fetched: Request URL has an unsupported protocol 'file://'"),
        ("cut.csv", "not fetched: peer closed connection without sending complete message body"),
        ("page.csv", r"a web page \(HTML\), not a table; an address may have answered with a page to log in"),
        ("none.csv?signature=secret", "none.csv: not fetched: 404 Not Found$"),
    ],
)
def test_a_broken_download_is_one_line_that_names_the_address(tmp_path, server, path, message):
    with pytest.raises(ValueError, match=message) as error:
        imported(tmp_path / "out", f"http://{server}/{path}", *write_files(tmp_path, items__csv=ITEMS))
    assert str(error.value).startswith(f"http://{server}/{path.partition('?')[0]}")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("address", ["s3://", "http://", "https:///x.csv"])
def test_an_address_without_bucket_or_host_is_refused(tmp_path, address):
    with pytest.raises(ValueError, match=f"{address}: names no (bucket|host)"):
        imported(tmp_path / "out", address)


def test_a_store_that_cannot_be_reached_is_one_line_with_what_to_check(tmp_path, monkeypatch):
    """Without credentials or network, the store's own error came with a traceback."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ValueError, match=r"s3://bucket/x\.csv: cannot be read: .*; check the address and AWS_ACCESS_KEY_ID"):
        imported(tmp_path / "out", "s3://bucket/x.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_not_called_a_broken_archive(tmp_path, monkeypatch):
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"user_id,item_id\nu,a\n"))
    monkeypatch.setattr("digr.data.importing.fetching._Scratch.new", lambda room, ending: Path("/dev/full"))
    with pytest.raises(
        ValueError, match=r"log\.csv\.gz: cannot be unpacked beside --out: .*No space left on device; give it more"
    ):
        imported(tmp_path / "out", tmp_path / "log.csv.gz")
