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
import httpx
import numpy as np
import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from PIL import Image, ImageCms

from digr.interests import images
from digr.interests.images import Clients, count_images, is_transient, read_bytes, show_images, small_png
from tests.buckets import serve_bucket
from tests.patience import CEILING_SECONDS


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Pauses between tries take no time worth waiting for."""
    monkeypatch.setattr(images, "_FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path):
    """A picture, a broken one, and a text."""
    Image.new("RGBA", (300, 100), (255, 0, 0, 255)).save(tmp_path / "red.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    return tmp_path


def _decode(shown):
    assert shown.reason is None
    return Image.open(io.BytesIO(base64.b64decode(shown.url.removeprefix("data:image/png;base64,"))))


def test_a_local_image_is_scaled_down_to_rgb(folder):
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
def test_a_broken_image_is_a_reason(folder, name, reason):
    (shown,) = show_images([str(folder / name)], 1_000_000, 60)
    assert shown.url is None
    assert re.match(reason, shown.reason)


def test_none_too_large_and_unknown_schemes_are_reasons(folder):
    shown = show_images([None, str(folder / "red.png"), "ftp://x/y.png", "http://no host/x.png"], 64, 60)
    assert [(one.url, one.transient) for one in shown] == [(None, False)] * 4
    assert shown[0].reason == "no image" and "larger than 64 bytes" in shown[1].reason
    assert all(one.reason.startswith("broken image") for one in shown[1:])


def test_images_come_over_http(folder):
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
def test_a_busy_server_is_asked_again_and_what_lasts_is_no_broken_image(folder, failure):
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


def _s3_error(code, status):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (_s3_error("SlowDown", 503), True),
        (_s3_error("InternalError", 500), True),
        (_s3_error("RequestTimeout", 400), True),
        (_s3_error("NoSuchKey", 404), False),
        (_s3_error("AccessDenied", 403), False),
        (ReadTimeoutError(endpoint_url="s3"), True),
        (NoCredentialsError(), True),
        (FileNotFoundError(2, "absent"), False),
        (OSError(36, "file name too long"), False),
        (OSError(116, "stale file handle"), True),
        (ValueError("larger than 64 bytes"), False),
    ],
    ids=str,
)
def test_what_another_try_may_mend_is_told_from_what_lasts(error, passes):
    assert is_transient(error) == passes


def _pixel(image, save, max_side=60, at=(0, 0), **options):
    sink = io.BytesIO()
    image.save(sink, save, **options)
    content = small_png(sink.getvalue(), max_side)
    shown = Image.open(io.BytesIO(content))
    assert shown.mode == "RGB" and not shown.info and not shown.getexif()
    return shown.getpixel(at)


def test_what_is_transparent_becomes_white():
    """A black text on nothing became a black rectangle."""
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert _pixel(clear, "PNG") == (255, 255, 255)
    assert _pixel(Image.new("RGBA", (40, 40), (255, 0, 0, 128)), "PNG") == (255, 127, 127)
    assert _pixel(Image.new("LA", (40, 40), (0, 0)), "PNG") == (255, 255, 255)
    assert _pixel(Image.new("P", (40, 40), 0), "GIF", transparency=0) == (255, 255, 255)
    assert _pixel(Image.new("RGB", (40, 40), (1, 2, 3)), "PNG", transparency=(1, 2, 3)) == (255, 255, 255)


def test_a_black_drawing_on_nothing_stays_black_on_white():
    drawing = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 20, 40))
    for image in (drawing, drawing.convert("LA")):
        assert [_pixel(image, "PNG", at=at) for at in ((10, 20), (30, 20))] == [(0, 0, 0), (255, 255, 255)]


def test_a_palettes_numbers_are_no_colours():
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert _pixel(image, "PNG") == _pixel(image, "GIF") == (10, 200, 30)


def test_sixteen_bits_are_scaled_to_eight():
    """All values above 255 became white."""
    grey = np.full((40, 40), 0x8000, np.uint16)
    assert _pixel(Image.fromarray(grey), "PNG") == (128, 128, 128)
    assert _pixel(Image.fromarray(grey), "TIFF") == (128, 128, 128)
    assert _pixel(Image.fromarray(grey.astype(np.int32)), "TIFF") == (128, 128, 128)
    assert _pixel(Image.fromarray(np.full((40, 40), 0.5, np.float32)), "TIFF") == (128, 128, 128)


@pytest.mark.parametrize("save", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_rotation_of_a_camera_is_applied_and_nothing_else_of_its_notes_goes_out(save):
    """A photo taken upright was shown lying."""
    photo = Image.new("RGB", (80, 40), "red")
    photo.paste("blue", (40, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"  # turned by a quarter, and its maker
    top, bottom = (_pixel(photo, save, 40, at, exif=exif) for at in ((10, 5), (10, 35)))
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


def test_four_inks_and_moving_pictures_are_shown_as_their_first_picture_in_rgb():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green, _ = _pixel(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", icc_profile=profile)
    assert red > 240 and green < 15
    frames = [Image.new("RGB", (40, 40), name) for name in ("red", "blue")]
    assert _pixel(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)


def test_data_addresses_are_images(folder):
    url = show_images([str(folder / "red.png")], 10**6, 60)[0].url
    again, broken = show_images([url, "data:image/png;base64,###"], 10**6, 60)
    assert _decode(again).size == (60, 20) and broken.reason.startswith("broken image")
    assert "data:image/png;base64: larger than 50 bytes" in show_images([url], 50, 60)[0].reason
    assert count_images([url, "data:text/plain,no"]) == (1, 0)


def test_an_address_is_read_as_shops_write_it(folder):
    """A blank around an address, or `%20` in a file's, made the image a broken one."""
    (folder / "red.png").rename(folder / "a b.png")
    inline = base64.b64encode((folder / "a b.png").read_bytes()).decode()
    uris = [f" {folder}/a b.png\n", f"file://{folder}/a%20b.png", f"file:{folder}/a%20b.png", f" data:image/png;base64,{inline}"]
    uris.append(f"data:image/png;charset=utf-8;base64,{inline[:40]}\n {inline[40:]}")
    assert [_decode(one).getpixel((0, 0)) for one in show_images(uris, 10**6, 60)] == [(255, 0, 0)] * 5
    assert count_images([*uris, " ", "//cdn.example.com/x.jpg"]) == (5, 1)
    assert [one.reason for one in show_images([" ", None], 10**6, 60)] == ["no image", "no image"]
    (folder / "a%20b.png").write_text("no image")  # in a path it is no blank
    assert show_images([f"{folder}/a%20b.png"], 10**6, 60)[0].reason.startswith("broken image: not a readable image")


def test_an_address_without_a_scheme_is_one_of_https():
    asked = []

    def answer(request):
        asked.append(str(request.url))
        return httpx.Response(200, content=b"picture")

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        assert read_bytes(" //cdn.example.com/x.jpg ", 100, Clients(http, None)) == b"picture"
    assert asked == ["https://cdn.example.com/x.jpg"]


def test_only_files_that_are_images_are_counted(folder):
    """Rows with an address were counted, whatever was there."""
    here = [str(folder / "red.png"), f"file://{folder}/red.png", str(folder / "text.jpg"), str(folder / "absent.png"), None, ""]
    assert count_images([*here, "https://shop.example/a.png", "s3://shop/b.png"]) == (2, 2)


class _Meeting(SimpleHTTPRequestHandler):
    """Answers only when four requests are there at once."""

    met = threading.Barrier(4)

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_GET(self):
        self.met.wait(CEILING_SECONDS)
        super().do_GET()


def test_images_are_fetched_in_parallel(folder):
    with _serve(_Meeting, folder) as base:
        shown = show_images([f"{base}/red.png"] * 4, 1_000_000, 60)
    assert [_decode(one).size for one in shown] == [(60, 20)] * 4


def test_images_come_from_s3(folder):
    with serve_bucket("shop") as bucket:
        boto3.client("s3").put_object(Bucket="shop", Key="img/red.png", Body=(folder / "red.png").read_bytes())
        red, absent = show_images([f"{bucket}/img/red.png", f"{bucket}/absent.png"], 1_000_000, 60)
    assert _decode(red).size == (60, 20) and absent.reason.startswith("broken image")
    assert not absent.transient
