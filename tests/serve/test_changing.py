"""The catalogue that changes while it is served: what is written can be applied, and what cannot be read is left out."""

import asyncio
import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from digr import artifacts
from digr.artifacts import Store
from digr.serving.state import LocalState
from serve import service as service_module
from serve.items.additions import VersionAdditions
from serve.items.catalogue import assemble, read_run
from serve.items.encoders import get_encoder
from serve.items.item_journal import ItemJournal
from serve.settings import AppArguments, VersionSettings
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray, write_run

LAMP = {"item_id": "lamp", "title": "A brass lamp", "categories": ["lamps"], "price": 9.5, "currency": "EUR"}
ROPE = {"item_id": "rope", "title": "A hemp rope"}


@pytest.fixture
def arguments(tiny_run, tmp_path):
    return AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))


def _follow(client) -> None:
    asyncio.run(client.service.follow())


def _files(folder: Path) -> dict[str, bytes]:
    """Return the files of the journals."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json"))}
    return {name: content for name, content in found.items() if not name.startswith(("replicas/", "events/"))}


def _write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def _put(item: dict, **more) -> bytes:
    return json.dumps({"operations": [{"op": "put", "item": item} | more]}).encode()


def _another_build(folder: Path) -> Store:
    """Write a run whose SIDs have another lineage, and a policy that was trained on them."""
    store = write_run(str(folder), seed=5)
    artifacts.commit(store, artifacts.require(store, "item_sids").model_copy(update={"seed": 9}))
    inputs = {"item_sids": artifacts.require(store, "item_sids").digest}
    artifacts.commit(store, artifacts.require(store, "policy_sft").model_copy(update={"inputs": inputs}))
    return store


def _encoder_that_is_away(config):
    raise OSError("the hub cannot be reached")


def test_an_item_whose_vector_cannot_be_made_leaves_no_trace(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "get_encoder", _encoder_that_is_away)
    client = serve_without_ray(arguments)
    refused = client.post("/v1/items", json=LAMP)
    assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (503, "no-vectors", "5")
    assert "the hub cannot be reached" in refused.json()["detail"]
    assert _files(tmp_path) == {}
    assert client.get("/v1/items/lamp").status_code == 404
    assert client.post("/v1/models", json={"action": "promote", "model": "main"}).status_code == 200
    monkeypatch.undo()
    assert serve_without_ray(arguments).post("/v1/items", json=LAMP).json()["is_new"] is True


def test_an_added_item_stands_in_the_journal_with_its_semantic_id_in_every_loaded_version(tiny_run, tmp_path):
    other = _another_build(tmp_path / "other")
    digests = {name: artifacts.require(store, "item_sids").digest for name, store in (("a", tiny_run), ("b", other))}
    assert digests["a"] != digests["b"]
    models = {"a": VersionSettings(run_dir=tiny_run.root), "b": VersionSettings(run_dir=other.root)}
    state = tmp_path / "state"
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(state)))
    reply = client.post("/v1/items", json=LAMP).json()
    (operation,) = json.loads((state / "items" / "000000001.json").read_bytes())["operations"]
    assert operation["sids"] == {digests[name]: reply["sids"][name] for name in ("a", "b")}
    assert not (state / "sids").exists()


def test_a_version_that_was_not_loaded_gives_semantic_ids_of_its_own_and_keeps_them(tiny_run, tmp_path, monkeypatch):
    """Two builds with the same codes but other SIDs by their lineage: what one assigned says nothing about the other."""
    other = _another_build(tmp_path / "other")
    state = tmp_path / "state"
    common = {"beam_width": BEAM_WIDTH, "max_pending": 1, "state_dir": str(state)}
    serve_without_ray(AppArguments(run_dir=tiny_run.root, **common)).post("/v1/items", json=LAMP)
    later = AppArguments(run_dir=other.root, **common)
    sid = serve_without_ray(later).get("/v1/items/lamp").json()["sid"]
    digest = artifacts.require(other, "item_sids").digest
    assert list(_files(state)) == ["items/000000001.json", f"sids/{digest}/000000001.json"]
    assert json.loads((state / "sids" / digest / "000000001.json").read_bytes()) == {"sids": {"lamp": sid}}
    monkeypatch.setattr(service_module, "get_encoder", _encoder_that_is_away)  # needed no more
    assert serve_without_ray(later).get("/v1/items/lamp").json()["sid"] == sid


def test_a_version_that_cannot_encode_yet_waits_and_the_rest_goes_on(arguments, tmp_path, monkeypatch):
    _write(tmp_path, "items/000000001.json", _put(LAMP))
    monkeypatch.setattr(service_module, "get_encoder", lambda config: away(config))
    away = _encoder_that_is_away
    client = serve_without_ray(arguments)
    (version,) = client.get("/v1/models").json()["data"]
    assert "the hub cannot be reached" in version["waiting"]
    assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 200
    assert client.post("/v1/items", json=ROPE).json()["type"] == "no-vectors"
    away = get_encoder
    _follow(client)
    assert client.get("/v1/models").json()["data"][0]["waiting"] is None
    assert client.get("/v1/items/lamp").json()["title"] == "A brass lamp"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON"),
        (b'{"item": {"item_id": "x"', "it is not JSON"),
        (b"\xff\xfe\x00", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[1, 2]", "it is not a JSON object"),
        (b'{"other": 1}', "KeyError('item')"),
        (b'{"item": 7}', "Input should be"),
        (b'{"item": {"item_id": "x"}}', "title: Field required"),
        (b'{"item": {"item_id": "x", "title": "T", "price": NaN}}', "price: Input should be a finite number"),
        (b'{"item": {"item_id": "x", "title": "T", "colour": "red"}}', "colour: Extra inputs are not permitted"),
        (b'{"op": "explode"}', "unknown op 'explode'"),
        (b'{"op": "change", "item_id": "item01", "facts": {"title": null}}', "title: Value error, an item has a title"),
    ],
)
def test_what_is_no_entry_is_named_and_the_entries_around_it_are_applied(arguments, tmp_path, content, reason):
    _write(tmp_path, "items/000000001.json", _put(LAMP))
    _write(tmp_path, "items/000000002.json", content)
    _write(tmp_path, "items/000000003.json", _put(ROPE))
    client = serve_without_ray(arguments)
    named = client.get("/v1/models").json()["set_aside"]
    assert list(named) == ["items/000000002.json"]
    assert reason in named["items/000000002.json"]
    assert [client.get(f"/v1/items/{item}").status_code for item in ("lamp", "rope")] == [200, 200]
    assert client.post("/v1/items", json=ROPE | {"item_id": "more"}).json()["is_new"] is True
    assert (tmp_path / "items" / "000000004.json").exists()


def test_one_broken_operation_of_an_entry_does_not_take_the_others_along(arguments, tmp_path):
    operations = [{"op": "put", "item": LAMP}, {"op": "put"}, "delete", {"op": "put", "item": ROPE}]
    _write(tmp_path, "items/000000001.json", json.dumps({"operations": operations}).encode())
    client = serve_without_ray(arguments)
    assert list(client.get("/v1/models").json()["set_aside"]) == [f"items/000000001.json operation {at}" for at in (2, 3)]
    assert [client.get(f"/v1/items/{item}").status_code for item in ("lamp", "rope")] == [200, 200]


@pytest.mark.parametrize("sid", [[], [8, 0, 0], [0, 0], [0, -1, 3], ["0", "1", "2"], 5, [0, 1, 2**40], [True, 0, 0], {"0": 1}])
def test_a_semantic_id_that_a_version_cannot_have_is_refused_and_named(arguments, tiny_run, tmp_path, sid):
    digest = artifacts.require(tiny_run, "item_sids").digest
    _write(tmp_path, "items/000000001.json", _put(LAMP, sids={digest: sid}))
    _write(tmp_path, "items/000000002.json", _put(ROPE))
    client = serve_without_ray(arguments)
    assert list(client.get("/v1/models").json()["data"][0]["refused_items"]) == ["lamp"]
    assert [client.get(f"/v1/items/{item}").status_code for item in ("lamp", "rope")] == [404, 200]


def test_a_folder_a_broken_choice_and_a_broken_journal_of_semantic_ids_stop_nothing(arguments, tiny_run, tmp_path):
    (tmp_path / "items" / "000000001.json").mkdir(parents=True)
    _write(tmp_path, "items/000000002.json", _put(LAMP))
    _write(tmp_path, "default/000000001.json", b'{"model": 5}')
    digest = artifacts.require(tiny_run, "item_sids").digest
    _write(tmp_path, f"sids/{digest}/000000002.json", b"{")
    client = serve_without_ray(arguments)
    reply = client.get("/v1/models").json()
    assert reply["set_aside"] == {
        "default/000000001.json": "it names no default version",
        "items/000000001.json": "it is a folder",
    }
    assert f"sids/{digest}/000000002.json: it is not JSON" in reply["data"][0]["refused_items"]["lamp"]
    assert client.post("/v1/models", json={"action": "promote", "model": "main"}).status_code == 200


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_FIELDS = ["item_id", "title", "categories", "price", "currency", "interests", "available", "price_usd", "image_uri"]
_ITEMS = st.dictionaries(st.sampled_from(_FIELDS), st.sampled_from(["x", "item01", [], ["a"], 1.5, "EUR", True]) | _VALUES)
_OPERATIONS = st.fixed_dictionaries(
    {},
    optional={
        "op": st.sampled_from(["put", "change", "delete"]) | _VALUES,
        "item": _ITEMS | _VALUES,
        "item_id": st.sampled_from(["x", "item01"]) | _VALUES,
        "facts": _ITEMS | _VALUES,
        "sids": st.dictionaries(st.text(max_size=3) | st.just("digest"), st.lists(st.integers(-3, 9), max_size=4) | _VALUES)
        | _VALUES,
    },
)
_ENTRIES = (
    st.binary(max_size=40)
    | _VALUES.map(lambda value: json.dumps(value).encode())
    | _OPERATIONS.map(lambda value: json.dumps(value).encode())
    | st.lists(_OPERATIONS | _VALUES, max_size=3).map(lambda value: json.dumps({"operations": value}).encode())
)


@pytest.fixture(scope="module")
def tables(tiny_run):
    return read_run(VersionSettings(run_dir=tiny_run.root), "cpu")._replace(sids_digest="digest")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(items=st.lists(_ENTRIES, max_size=3), sids=st.lists(_ENTRIES, max_size=3))
def test_no_bytes_in_a_journal_stop_the_start_or_what_follows(tables, tiny_run, tmp_path_factory, items, sids):
    folder = tmp_path_factory.mktemp("state")
    for number, content in enumerate(items, 1):
        _write(folder, f"items/{number:09d}.json", content)
    for number, content in enumerate(sids, 1):
        _write(folder, f"sids/digest/{number:09d}.json", content)
    _write(folder, f"items/{len(items) + 1:09d}.json", _put(LAMP | {"item_id": "last"}, sids={"digest": [7, 7, 7]}))
    state = LocalState(folder)
    journal = ItemJournal(state)
    additions = VersionAdditions(tables, VersionSettings(run_dir=tiny_run.root), state, lambda config: _constant)
    additions.follow(journal)
    run = assemble(tables, additions.additions(), additions.changes(journal))
    assert journal.num_read == len(items) + 1
    assert additions.waiting is None
    assert run.trie.num_items == 60 + run.num_new_items
    assert run.facts.ids.find(["last"])[0] >= 0 or "last" in additions.refused


def _constant(texts: list[str]) -> np.ndarray:
    return np.full((len(texts), 384), 384**-0.5, np.float32)


def test_a_change_that_another_replica_precedes_is_decided_again_behind_it(arguments, tmp_path, monkeypatch):
    """The other one writes between the decision and the writing, and gets the semantic ID that this one had thought of."""
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    calls = []

    def overtaken(config):
        encode = get_encoder(config)

        def encode_late(texts):
            calls.append(len(texts))
            if len(calls) == 1:
                two.post("/v1/items", json=LAMP | {"item_id": "other"})
            return encode(texts)

        return encode_late

    monkeypatch.setattr(one.service.versions["main"].additions, "_get_encoder", overtaken)
    mine = one.post("/v1/items", json=LAMP)
    assert mine.status_code == 200
    assert calls == [1]  # the vector is kept
    sids = {item: one.get(f"/v1/items/{item}").json()["sid"] for item in ("lamp", "other")}
    assert sids["lamp"] != sids["other"] and sids["lamp"][:-1] == sids["other"][:-1]
    entries = [json.loads(content)["operations"] for content in _files(tmp_path).values()]
    assert [[operation["item"]["item_id"] for operation in each] for each in entries] == [["other"], ["lamp"]]
    monkeypatch.undo()
    _follow(two)
    assert two.get("/v1/items/lamp").json()["sid"] == sids["lamp"]


def test_of_two_replicas_that_add_one_id_at_once_the_second_is_refused(arguments, tmp_path, monkeypatch):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    other = LAMP | {"title": "Another lamp"}

    def overtaken(config):
        two.post("/v1/items", json=other)
        return get_encoder(config)

    monkeypatch.setattr(one.service.versions["main"].additions, "_get_encoder", overtaken)
    refused = one.post("/v1/items", json=LAMP)
    assert (refused.status_code, refused.json()["type"]) == (409, "item-exists")
    assert one.get("/v1/items/lamp").json()["title"] == "Another lamp"
    assert len(_files(tmp_path)) == 1


def test_semantic_ids_that_an_older_program_wrote_are_kept(arguments, tiny_run, tmp_path):
    digest = artifacts.require(tiny_run, "item_sids").digest
    _write(tmp_path, "items/000000001.json", json.dumps({"item": LAMP}).encode())
    _write(tmp_path, "items/000000002.json", json.dumps({"item": ROPE}).encode())
    _write(tmp_path, f"sids/{digest}/000000001.json", b'{"codes": [7, 6, 5], "refused": null}')
    _write(tmp_path, f"sids/{digest}/000000002.json", b'{"codes": null, "refused": "no code was left"}')
    client = serve_without_ray(arguments)
    assert client.get("/v1/items/lamp").json()["sid"] == [7, 6, 5]
    assert client.get("/v1/models").json()["data"][0]["refused_items"] == {"rope": "no code was left"}


def test_an_item_for_which_the_default_version_has_no_code_is_not_written(arguments, tmp_path):
    """All items of equal words share a prefix, below which there are as many codes as the last level has."""
    client = serve_without_ray(arguments)
    replies = [client.post("/v1/items", json=LAMP | {"item_id": f"lamp{at}"}) for at in range(12)]
    refused = [reply for reply in replies if reply.status_code == 409]
    added = len(replies) - len(refused)
    assert refused and refused[0].json()["type"] == "no-code-left"
    assert "is not added, because the default version cannot recommend it" in refused[0].json()["detail"]
    assert len(_files(tmp_path)) == added
    assert client.get("/v1/models").json()["data"][0]["num_new_items"] == added


def test_a_disk_that_fails_is_a_problem_and_lists_go_on(arguments, monkeypatch):
    client = serve_without_ray(arguments)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalState, "create", full)
    refused = client.delete("/v1/items/item01")
    assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (503, "state-not-reached", "5")
    assert client.get("/v1/items/item01").status_code == 200
    assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 200


@pytest.mark.parametrize("uri", ["http://host/a.png", "file:///etc/passwd", "/etc/passwd", "s3://bucket/a", "https"])
def test_an_image_of_a_new_item_is_https_or_inline(arguments, tmp_path, uri):
    client = serve_without_ray(arguments)
    refused = client.post("/v1/items", json=LAMP | {"image_uri": uri})
    assert (refused.status_code, refused.json()["type"]) == (422, "image-not-allowed")
    assert _files(tmp_path) == {}


def test_the_image_of_a_new_item_is_shown_and_does_not_change_its_vector(arguments):
    sink = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(sink, "PNG")
    pixel = f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
    client = serve_without_ray(arguments)
    reply = client.post("/v1/items", json=LAMP | {"image_uri": pixel})
    assert reply.status_code == 200
    assert client.get("/v1/items/lamp").json()["image"] == "/v1/items/lamp/image"
    shown = client.get("/v1/items/lamp/image")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    found = client.get("/v1/items", params={"query": "brass"}).json()["items"]
    assert [item["image"] for item in found] == ["/v1/items/lamp/image"]
    additions = client.service.versions["main"].additions
    items = [LAMP | {"description": None, "brand": None, "interests": [], "image_uri": uri} for uri in (None, pixel)]
    with_image, without = (additions.vectors_of([item])["lamp"] for item in items)
    np.testing.assert_array_equal(with_image, without)


def test_an_item_that_changes_while_a_version_waits_for_it_comes_changed(arguments, tmp_path, monkeypatch):
    _write(tmp_path, "items/000000001.json", _put(LAMP))
    monkeypatch.setattr(service_module, "get_encoder", lambda config: away(config))
    away = _encoder_that_is_away
    client = serve_without_ray(arguments)
    assert client.patch("/v1/items/lamp", json={"title": "A lamp of tin"}).status_code == 404  # as GET says
    assert len(_files(tmp_path)) == 1
    lines = b'{"item_id": "lamp", "title": "A lamp of tin"}'
    client.post("/v1/items/bulk", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert len(_files(tmp_path)) == 2
    _follow(client)
    away = get_encoder
    _follow(client)
    assert client.get("/v1/items/lamp").json()["title"] == "A lamp of tin"
