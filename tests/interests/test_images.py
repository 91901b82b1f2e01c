"""Images are read from anywhere, bounded, and a broken one is a reason."""

import base64
import io
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from digr.interests.images import show_images
from tests.patience import CEILING_SECONDS


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
    shown = show_images([None, str(folder / "red.png"), "ftp://x/y.png", "http://127.0.0.1:1/x.png"], 64, 60)
    assert [one.url for one in shown] == [None] * 4
    assert shown[0].reason == "no image" and "larger than 64 bytes" in shown[1].reason
    assert all(one.reason.startswith("broken image") for one in shown[1:])


def test_images_come_over_http(folder):
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *arguments: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    red, absent = show_images([f"{base}/red.png", f"{base}/absent.png"], 1_000_000, 60)
    server.shutdown()
    assert _decode(red).size == (60, 20) and "404" in absent.reason


class _Meeting(SimpleHTTPRequestHandler):
    """Answers only when four requests are there at once."""

    met = threading.Barrier(4)

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_GET(self):
        self.met.wait(CEILING_SECONDS)
        super().do_GET()


def test_images_are_fetched_in_parallel(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Meeting, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shown = show_images([f"http://127.0.0.1:{server.server_port}/red.png"] * 4, 1_000_000, 60)
    server.shutdown()
    assert [_decode(one).size for one in shown] == [(60, 20)] * 4


def test_images_come_from_s3(folder, monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="shop")
    client.put_object(Bucket="shop", Key="img/red.png", Body=(folder / "red.png").read_bytes())
    red, absent = show_images(["s3://shop/img/red.png", "s3://shop/absent.png"], 1_000_000, 60)
    server.stop()
    assert _decode(red).size == (60, 20) and absent.reason.startswith("broken image")
