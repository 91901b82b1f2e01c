"""The endpoint with its page and two versions, over real HTTP and without Ray."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from PIL import Image

from digr import artifacts
from digr.artifacts import Store
from serve.callers import KeyRing
from serve.routes import build_api
from serve.settings import AppArguments, VersionSettings
from tests.serve.http_server import serve_over_http
from tests.serve.tiny_run import BEAM_WIDTH, put, start_service, write_canonical, write_run

HOSTILE = "<img src=x onerror=\"document.title='caught'\"> & <b>Title</b> item07"


def _write(root: Path, seed: int, currencies: Sequence[str | None]) -> VersionSettings:
    """Write a tiny run whose item05 has an image, and whose item07 has a title of markup."""
    store: Store = write_run(str(root), seed=seed, currencies=currencies)
    write_canonical(store)
    Image.new("RGB", (40, 30), "#2a7").save(root / "item05.png")
    items = artifacts.read_table(store, "items")
    images = [str(root / "item05.png") if item == "item05" else None for item in items["item_id"].to_pylist()]
    titles = [HOSTILE if title == "Title item07" else title for title in items["title"].to_pylist()]
    put(
        store,
        "items",
        {**{name: items[name] for name in items.schema.names}, "title": titles, "image_uri": pa.array(images, pa.string())},
    )
    return VersionSettings(run_dir=str(root))


@contextmanager
def serve_two_versions(folder: Path, keys_file: str = "", currencies: Sequence[str | None] = ("EUR",)) -> Iterator[str]:
    """Serve the versions `one` and `two`, which differ in their policies; yields the address."""
    models = {"one": _write(folder / "one", 3, currencies), "two": _write(folder / "two", 4, currencies)}
    arguments = AppArguments(models=models, beam_width=BEAM_WIDTH, state_dir=str(folder / "state"))
    service = start_service(arguments)
    with serve_over_http(build_api(service, KeyRing(keys_file))) as url:
        yield url
