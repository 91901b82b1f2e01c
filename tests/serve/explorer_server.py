"""The endpoint with its page and two versions, over real HTTP and without Ray."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from digr import artifacts
from digr.artifacts import Store
from serve.keys import KeyRecord, written
from serve.lists.experiments import ExperimentSettings
from serve.middleware.callers import KeyRing
from serve.routes import build_api
from serve.settings import AppArguments, VersionSettings
from tests.nested_interests import nest_rows
from tests.serve.http_server import serve_over_http
from tests.serve.ranked_run import INTERESTS, write_ranker
from tests.serve.tiny_run import BEAM_WIDTH, put, start_service, write_canonical, write_run

HOSTILE = "<img src=x onerror=\"document.title='caught'\"> & <b>Title</b> item07"


def _write(root: Path, seed: int, currencies: Sequence[str | None] = ("EUR",), *, ranked: bool = False) -> VersionSettings:
    """Write a tiny run whose item05 has an image, and whose item07 has a title of markup."""
    store: Store = write_run(str(root), seed=seed, currencies=currencies)
    if ranked:
        write_ranker(store)
        owners = artifacts.read_table(store, "items")["item_id"].to_pylist()
        labels = [{"owner_id": item, "interest": INTERESTS[at % len(INTERESTS)]} for at, item in enumerate(owners)]
        put(store, "interest_labels", nest_rows("interest_labels", labels, owners))
    else:
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


def write_keys(path: Path, *records: KeyRecord) -> str:
    """Write the file of keys; returns its path."""
    path.write_text("".join(written(record) for record in records))
    return str(path)


@contextmanager
def serve_two_versions(folder: Path, keys_file: str = "", currencies: Sequence[str | None] = ("EUR",)) -> Iterator[str]:
    """Serve the versions `one` and `two`, which differ in their policies and have no ranker; yields the address."""
    models = {"one": _write(folder / "one", 3, currencies), "two": _write(folder / "two", 4, currencies)}
    with _serve(folder, models, keys_file) as url:
        yield url


@contextmanager
def serve_ranked(folder: Path) -> Iterator[str]:
    """Serve the version `ranked`, and `plain` without a ranker; an experiment splits the users between them."""
    models = {"ranked": _write(folder / "ranked", 3, ranked=True), "plain": _write(folder / "plain", 4)}
    split = ExperimentSettings(name="spring", arms={"ranked": 0.5, "plain": 0.5})
    with _serve(folder, models, default_model="ranked", experiment=split) as url:
        yield url


@contextmanager
def _serve(folder: Path, models: dict[str, VersionSettings], keys_file: str = "", **more: Any) -> Iterator[str]:
    arguments = AppArguments(models=models, beam_width=BEAM_WIDTH, state_dir=str(folder / "state"), **more)
    service = start_service(arguments)
    with serve_over_http(build_api(service, KeyRing(keys_file))) as url:
        yield url
