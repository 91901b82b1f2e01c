"""Images of items go out as small PNGs, are kept, and hold up nothing else however slow their servers are."""

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pyarrow as pa
import pytest
from PIL import Image

from digr import artifacts
from digr.config.images import ImagesConfig
from digr.images.showing import FOLDERS
from serve.contract.problems import ProblemError
from serve.items import images
from serve.items.images import AWAY_SECONDS, FAILED_SECONDS, FRESH_SECONDS, MAX_WAITING, ImageLimits, ItemImages
from serve.middleware.gate import KeyRing
from serve.routes import build_api
from serve.run import read_arguments
from serve.settings import AppArguments
from tests.patience import CEILING_SECONDS, wait_until
from tests.serve.tiny_run import client_of, put, start_service, write_run

LOOPBACK = ImagesConfig(private_networks=("127.0.0.0/8",), max_seconds=600)
LIMITS = ImageLimits(max_bytes=100_000, max_side=64, seconds=CEILING_SECONDS)


def _picture(colour="red", size=(300, 100)):
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, "JPEG")
    return sink.getvalue()


class _Shop(BaseHTTPRequestHandler):
    """Answers `/200...` with a picture and other paths with their first number; nothing before `release` is set."""

    def log_message(self, *arguments):
        """Keep the test's output clean."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.release.wait(CEILING_SECONDS)
        self.send_response(int(self.path[1:4]))
        content = _picture()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def _shop(blocked=False):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    server.asked, server.release, server.daemon_threads = [], threading.Event(), True
    server.url = f"http://127.0.0.1:{server.server_port}"
    if not blocked:
        server.release.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


class _Time:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose item01 has an image in the run's folder, item02 one in its data's, item03 one elsewhere, item05 one on a
    server of this machine."""
    root = tmp_path_factory.mktemp("images")
    store = write_run(str(root / "run"))
    (root / "data").mkdir()
    for place in ("run", "data", "."):
        (root / place / "x.jpg").write_bytes(_picture())
    places = {"item01": root / "run" / "x.jpg", "item02": root / "data" / "x.jpg", "item03": root / "x.jpg"}
    uris = {item: str(path) for item, path in places.items()} | {"item05": "http://127.0.0.1:1/x.jpg"}
    items = artifacts.read_table(store, "items")
    column = pa.array([uris.get(item) for item in items["item_id"].to_pylist()], pa.string())
    items = items.drop_columns(["image_uri"]) if "image_uri" in items.column_names else items
    artifacts.begin(store, "items")
    put(store, "items", items.append_column("image_uri", column), facts={FOLDERS: [str(root / "data")]})
    return store


@pytest.fixture(scope="module")
def client(run):
    return client_of(start_service(AppArguments(run_dir=run.root, max_image_side=64)))


def test_an_image_goes_out_as_a_small_png_with_a_tag_that_saves_the_next_reply(client):
    reply = client.get("/v1/items/item01/image")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(reply.content)) as image:
        assert (image.format, image.size) == ("PNG", (64, 21))
    tag = reply.headers["etag"]
    assert reply.headers["cache-control"] == "private, max-age=86400" and tag.startswith('"') and tag.endswith('"')
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/v1/items/item01/image", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/v1/items/item01/image", headers={"If-None-Match": '"other"'}).content == reply.content


def test_files_of_the_run_and_of_its_data_are_read_and_no_others(client, caplog):
    assert client.get("/v1/items/item02/image").status_code == 200
    reply = client.get("/v1/items/item03/image")
    assert (reply.status_code, reply.json()["type"]) == (404, "broken-image")
    assert "images.folders adds to" in caplog.text and "images.folders" not in reply.text


def test_a_server_of_a_private_network_is_not_asked(client, caplog):
    reply = client.get("/v1/items/item05/image")
    assert (reply.status_code, reply.json()["type"]) == (404, "broken-image")
    assert "images.private_networks allows []" in caplog.text


def test_the_rules_are_given_as_json_on_the_command_line(run):
    arguments = read_arguments(run.root, ['images={"hosts": ["*.cdn.example"], "max_seconds": 3}'])
    assert (arguments.images.hosts, arguments.images.max_seconds) == (("*.cdn.example",), 3.0)
    for word, reason in {'images={"host": []}': "images.host", "images={": "images = "}.items():
        with pytest.raises(ValueError, match=reason):
            read_arguments(run.root, [word])


def _get(pictures, *uris):
    """Ask for several images at once; gives their contents or the types of their problems."""

    async def ask():
        found = await asyncio.gather(*(pictures.get("x", uri) for uri in uris), return_exceptions=True)
        return [each.problem.type if isinstance(each, ProblemError) else each.content for each in found]

    return asyncio.run(ask())


def test_an_image_is_read_once_for_all_who_ask_and_again_when_it_is_old():
    clock = _Time()
    with _shop(blocked=True) as shop:
        pictures = ItemImages(LOOPBACK, LIMITS, now=clock)
        threading.Thread(target=lambda: wait_until(lambda: bool(shop.asked)) or shop.release.set(), daemon=True).start()
        many = _get(pictures, *[f"{shop.url}/200"] * 5)
        assert len(set(many)) == 1 and shop.asked == ["/200"]
        clock.now = FRESH_SECONDS - 1
        assert _get(pictures, f"{shop.url}/200") == many[:1] and len(shop.asked) == 1
        clock.now = FRESH_SECONDS + 1
        assert _get(pictures, f"{shop.url}/200") == many[:1] and len(shop.asked) == 2


@pytest.mark.parametrize(
    ("path", "problem", "seconds"),
    [("/404", "broken-image", FAILED_SECONDS), ("/503", "image-not-reached", AWAY_SECONDS)],
)
def test_what_cannot_be_read_is_not_tried_again_for_a_while(path, problem, seconds):
    clock = _Time()
    with _shop() as shop:
        pictures = ItemImages(LOOPBACK, LIMITS, now=clock)
        for now, asked in ((0, 1), (seconds - 0.5, 1), (seconds + 0.5, 2)):
            clock.now = now
            assert _get(pictures, shop.url + path) == [problem] and len(shop.asked) == asked
        with pytest.raises(ProblemError) as raised:
            asyncio.run(pictures.get("x", shop.url + path))
    assert (raised.value.problem.status, raised.value.headers) == ((404, None) if path == "/404" else (503, {"Retry-After": "5"}))


def test_the_memory_of_kept_images_is_bounded(monkeypatch):
    """The least recent go first."""
    with _shop() as shop:
        one = len(_get(ItemImages(LOOPBACK, LIMITS), f"{shop.url}/200")[0])
        monkeypatch.setattr(images, "CACHE_BYTES", 2 * one)
        pictures = ItemImages(LOOPBACK, LIMITS)
        shop.asked.clear()
        for path in ("/200a", "/200b", "/200a", "/200c", "/200a", "/200b"):
            _get(pictures, shop.url + path)
        assert shop.asked == ["/200a", "/200b", "/200c", "/200b"]
        monkeypatch.setattr(images, "CACHE_BYTES", one - 1)
        assert len(_get(ItemImages(LOOPBACK, LIMITS), f"{shop.url}/200")[0]) == one


def test_what_one_version_may_read_is_not_given_to_another_that_may_not(tmp_path):
    (tmp_path / "x.jpg").write_bytes(_picture())
    pictures, uri = ItemImages(LOOPBACK, LIMITS), str(tmp_path / "x.jpg")
    assert asyncio.run(pictures.get("x", uri, (str(tmp_path),))).content
    with pytest.raises(ProblemError, match="cannot be read"):
        asyncio.run(pictures.get("x", uri, ()))
    assert asyncio.run(pictures.get("x", uri, (str(tmp_path),))).content


def test_images_beyond_the_line_are_problems_that_pass():
    with _shop(blocked=True) as shop:
        pictures = ItemImages(LOOPBACK, LIMITS)

        async def ask():
            waiting = [asyncio.create_task(pictures.get("x", f"{shop.url}/200?{number}")) for number in range(MAX_WAITING)]
            await asyncio.sleep(0)
            with pytest.raises(ProblemError, match="32 images are being read already") as raised:
                await pictures.get("x", f"{shop.url}/200?more")
            shop.release.set()
            assert len(await asyncio.gather(*waiting)) == MAX_WAITING
            assert (await pictures.get("x", f"{shop.url}/200?more")).content
            return raised.value

        error = asyncio.run(ask())
    assert (error.problem.status, error.headers) == (503, {"Retry-After": "1"})


def test_a_request_waits_for_its_deadline_only_and_the_next_one_has_the_image():
    with _shop(blocked=True) as shop:
        pictures = ItemImages(LOOPBACK, LIMITS._replace(seconds=0.01))

        async def ask():
            with pytest.raises(ProblemError, match=r"there was no answer within 0\.01 seconds"):
                await pictures.get("x", f"{shop.url}/200")
            shop.release.set()
            await asyncio.gather(*pictures._running.values())
            return await pictures.get("x", f"{shop.url}/200")

        assert asyncio.run(ask()).content
        assert shop.asked == ["/200"]


def test_slow_images_hold_up_neither_searches_nor_what_follows_other_replicas(run):
    """Six slow images stalled the search, metrics and the refresh of keys, which shared their threads, for half a minute."""
    with _shop(blocked=True) as shop:
        service = start_service(AppArguments(run_dir=run.root, images=LOOPBACK))
        service.images = ItemImages(LOOPBACK, LIMITS)

        async def ask():
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            waiting = [asyncio.create_task(service.images.get("x", f"{shop.url}/200?{number}")) for number in range(6)]
            await asyncio.to_thread(wait_until, lambda: len(shop.asked) == images.THREADS)
            transport = httpx.ASGITransport(build_api(service, KeyRing("")), client=("127.0.0.1", 50000))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                found = await client.get("/v1/items", params={"query": "title"})
            await service.follow()
            assert not any(task.done() for task in waiting)
            shop.release.set()
            await asyncio.gather(*waiting)
            return found

        found = asyncio.run(ask())
    assert found.status_code == 200 and found.json()["items"]
