"""Images are read from anywhere within bounds, and a broken one is reported with its reason."""

import base64
import io
import re
import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import boto3
import pytest
from PIL import Image

from digr.config.images import ImagesConfig
from digr.images import showing
from digr.images.showing import ImageRules, count_images
from tests.buckets import serve_bucket
from tests.patience import CEILING_SECONDS


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Pauses between tries take no time worth waiting for."""
    monkeypatch.setattr(showing, "_FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path):
    """A picture, a broken one, and a text."""
    Image.new("RGBA", (300, 100), (255, 0, 0, 255)).save(tmp_path / "red.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    return tmp_path


@pytest.fixture
def show_images(tmp_path):
    """Show images with this test's files and this machine's servers allowed."""

    def show(uris, max_bytes, max_side):
        allowed = ImagesConfig(private_networks=("127.0.0.0/8",))
        return showing.show_images(uris, ImageRules(allowed, (str(tmp_path),), max_bytes, max_side))

    return show


def _decode(shown):
    assert shown.reason is None
    return Image.open(io.BytesIO(base64.b64decode(shown.url.removeprefix("data:image/png;base64,"))))


def test_a_local_image_is_scaled_down_to_rgb(folder, show_images):
    for uri in (str(folder / "red.png"), f"file://{folder}/red.png"):
        image = _decode(*show_images([uri], 1_000_000, 60))
        assert (image.size, image.mode, image.getpixel((0, 0))) == ((60, 20), "RGB", (255, 0, 0))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.png", "broken image: not a readable image"),
        ("text.jpg", "broken image: not a readable image"),
        ("absent.png", "broken image: .*No such file"),
    ],
)
def test_a_broken_image_is_a_reason(folder, name, reason, show_images):
    (shown,) = show_images([str(folder / name)], 1_000_000, 60)
    assert shown.url is None
    assert re.match(reason, shown.reason)


def test_none_too_large_and_unknown_schemes_are_reasons(folder, show_images):
    shown = show_images([None, str(folder / "red.png"), "ftp://x/y.png", "http://no host/x.png"], 64, 60)
    assert [(one.url, one.transient) for one in shown] == [(None, False)] * 4
    assert shown[0].reason == "no image" and "larger than 64 bytes" in shown[1].reason
    assert all(one.reason.startswith("broken image") for one in shown[1:])


def test_images_come_over_http(folder, show_images):
    with _serve(_Busy, folder) as base:
        red, absent = show_images([f"{base}/red.png", f"{base}/absent.png"], 1_000_000, 60)
    assert _decode(red).size == (60, 20)
    assert "404" in absent.reason and absent.reason.startswith("broken image") and not absent.transient


class _Busy(SimpleHTTPRequestHandler):
    """Answers `/429-2/red.png` twice with 429, then with the file; `lost` closes the connection instead."""

    seen: ClassVar[Counter[str]] = Counter()

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_GET(self):
        how, _, times = self.path.split("/")[1].partition("-")
        if times:
            self.seen[self.path] += 1
            if self.seen[self.path] <= int(times):
                return self.close_connection if how == "lost" else self.send_error(int(how))
            self.path = self.path[self.path.rindex("/") :]
        return super().do_GET()


@contextmanager
def _serve(handler, folder):
    handler.seen = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("failure", ["503", "429", "500", "lost"])
def test_a_busy_server_is_asked_again_and_what_lasts_is_no_broken_image(folder, failure, show_images):
    """A row whose image came with a 503 was asked with its text only and counted as "ok" for ever."""
    with _serve(_Busy, folder) as base:
        twice, often, gone = show_images(
            [f"{base}/{failure}-2/red.png", f"{base}/{failure}-9/red.png", f"{base}/404-9/x"], 10**6, 60
        )
        assert _decode(twice).size == (60, 20)
        assert (often.url, often.transient) == (None, True) and often.reason.startswith("image not fetched in 3 tries")
        assert (gone.url, gone.transient) == (None, False) and gone.reason.startswith("broken image")
        assert _Busy.seen == {f"/{failure}-2/red.png": 3, f"/{failure}-9/red.png": 3, "/404-9/x": 1}
    (down,) = show_images([f"{base}/red.png"], 10**6, 60)
    assert down.transient


def test_data_addresses_are_images(folder, show_images):
    url = show_images([str(folder / "red.png")], 10**6, 60)[0].url
    again, broken = show_images([url, "data:image/png;base64,###"], 10**6, 60)
    assert _decode(again).size == (60, 20) and broken.reason.startswith("broken image")
    assert "data:image/png;base64: larger than 50 bytes" in show_images([url], 50, 60)[0].reason
    assert count_images([url, "data:text/plain,no"], ImagesConfig()) == (2, 1, 0, 0, "")


def test_an_address_is_read_as_shops_write_it(folder, show_images):
    """A blank around an address, or `%20` in a file's, made the image a broken one."""
    (folder / "red.png").rename(folder / "a b.png")
    inline = base64.b64encode((folder / "a b.png").read_bytes()).decode()
    uris = [f" {folder}/a b.png\n", f"file://{folder}/a%20b.png", f"file:{folder}/a%20b.png", f" data:image/png;base64,{inline}"]
    uris.append(f"data:image/png;charset=utf-8;base64,{inline[:40]}\n {inline[40:]}")
    assert [_decode(one).getpixel((0, 0)) for one in show_images(uris, 10**6, 60)] == [(255, 0, 0)] * 5
    assert count_images([*uris, " ", "//cdn.example.com/x.jpg"], ImagesConfig(), [str(folder)])[:4] == (7, 5, 1, 0)
    assert [one.reason for one in show_images([" ", None], 10**6, 60)] == ["no image", "no image"]
    (folder / "a%20b.png").write_text("no image")  # in a path it is no blank
    assert show_images([f"{folder}/a%20b.png"], 10**6, 60)[0].reason.startswith("broken image: not a readable image")


def test_only_files_that_are_images_are_counted(folder):
    """Rows with an address were counted, whatever was there."""
    here = [str(folder / "red.png"), f"file://{folder}/red.png", str(folder / "text.jpg"), str(folder / "absent.png"), None, ""]
    remote = ["https://shop.example/a.png", "s3://shop/b.png"]
    counts = count_images([*here, *remote], ImagesConfig(), [str(folder)])
    assert counts == (7, 2, 2, 0, "")
    assert counts.notes() == ["3 of 7 images do not open; their items have their text only"]


def test_addresses_that_are_refused_are_counted_with_the_first_reason(folder):
    uris = [str(folder / "red.png"), "http://169.254.169.254/x.png", "ftp://shop.example/x.png", "https://shop.example/x.png"]
    counts = count_images(uris, ImagesConfig())
    assert counts[:4] == (4, 0, 1, 3)
    (note,) = counts.plus(counts).notes()
    assert note.startswith(f"6 of 8 images are not read; the first: {folder}/red.png: in no folder that is read; images.folders")
    assert counts.facts() == {"num_image_uris": 4, "num_images": 0, "num_remote_images": 1, "num_refused_images": 3}


class _Meeting(SimpleHTTPRequestHandler):
    """Answers only when four requests are there at once."""

    met = threading.Barrier(4)

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_GET(self):
        self.met.wait(CEILING_SECONDS)
        super().do_GET()


def test_images_are_fetched_in_parallel(folder, show_images):
    with _serve(_Meeting, folder) as base:
        shown = show_images([f"{base}/red.png"] * 4, 1_000_000, 60)
    assert [_decode(one).size for one in shown] == [(60, 20)] * 4


def test_images_come_from_s3(folder, show_images):
    with serve_bucket("shop") as bucket:
        boto3.client("s3").put_object(Bucket="shop", Key="img/red.png", Body=(folder / "red.png").read_bytes())
        red, absent = show_images([f"{bucket}/img/red.png", f"{bucket}/absent.png"], 1_000_000, 60)
    assert _decode(red).size == (60, 20) and absent.reason.startswith("broken image")
    assert not absent.transient
