"""Many items as JSON lines: each line has its result, and one that fails stops no other."""

import json

import pytest

from serve.contract.item_schemas import MAX_BULK
from serve.items import bulk
from serve.settings import AppArguments
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray

HEADERS = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def arguments(tiny_run, tmp_path):
    return AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))


def _send(client, *lines: bytes | dict) -> list[dict]:
    body = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    reply = client.post("/v1/items/bulk", content=body, headers=HEADERS)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in reply.text.splitlines()]


def test_each_line_is_added_changed_unchanged_or_failed_in_order(arguments, tmp_path):
    client = serve_without_ray(arguments)
    results = _send(
        client,
        {"item_id": "lamp", "title": "A brass lamp", "interests": ["light"]},
        {"item_id": "rope"},
        b"",
        {"item_id": "item01", "price": 3.5},
        b"{broken",
        {"item_id": "item02", "price": 2.0},
        {"item_id": "item03", "colour": "red"},
        {"item_id": "lamp", "title": "A brass lamp", "interests": ["dark"]},
        {"item_id": "lamp", "price": 4},
        {"item_id": "item04", "delete": True},
        [1],
        {"item_id": 7, "title": "T"},
        {"item_id": "", "title": "T"},
        {"item_id": "rope", "title": "A rope"},
    )
    assert [(each["line"], each.get("item_id"), each["status"]) for each in results] == [
        (1, "lamp", "added"),
        (2, "rope", "failed"),
        (4, "item01", "changed"),
        (5, None, "failed"),
        (6, "item02", "unchanged"),
        (7, "item03", "failed"),
        (8, "lamp", "failed"),
        (9, "lamp", "changed"),
        (10, "item04", "changed"),
        (11, None, "failed"),
        (12, None, "failed"),
        (13, None, "failed"),
        (14, "rope", "added"),
    ]
    problems = {each["line"]: each["problem"] for each in results if each["status"] == "failed"}
    assert {line: problem["type"] for line, problem in problems.items()} == {
        2: "invalid-request",
        5: "invalid-json",
        7: "invalid-request",
        8: "interests-stay",
        11: "invalid-json",
        12: "invalid-request",
        13: "invalid-request",
    }
    assert problems[2]["detail"] == "title: Field required"
    assert problems[7]["detail"] == "colour: Extra inputs are not permitted"
    assert problems[12]["detail"].startswith("item_id: Input should be a valid string")
    assert len(list((tmp_path / "items").iterdir())) == 1
    again = serve_without_ray(arguments, "two")
    for replica in (client, again):
        assert replica.get("/v1/items/lamp").json()["price"] == 4
        assert replica.get("/v1/items/item01").json()["price"] == 3.5
        assert [replica.get(f"/v1/items/{item}").status_code for item in ("rope", "item04")] == [200, 404]
    assert again.get("/v1/items/lamp").json()["sid"] == client.get("/v1/items/lamp").json()["sid"]


def test_an_item_that_is_added_deleted_and_added_in_one_bulk_is_one_item(arguments):
    client = serve_without_ray(arguments)
    rope = {"item_id": "rope", "title": "A rope"}
    results = _send(client, rope, {"item_id": "rope", "delete": True}, {"item_id": "rope", "price": 1}, rope | {"title": "B"})
    assert [each["status"] for each in results] == ["added", "changed", "failed", "added"]
    assert client.get("/v1/items/rope").json()["title"] == "B"
    assert client.get("/v1/models").json()["data"][0]["num_new_items"] == 1


def test_a_chunk_is_one_call_of_the_encoder_and_one_entry_and_its_semantic_ids_differ(arguments, tmp_path, monkeypatch):
    calls = []
    from serve import service
    from serve.items.encoders import get_encoder

    def counted(config):
        encode = get_encoder(config)
        return lambda texts: (calls.append(len(texts)), encode(texts))[1]

    monkeypatch.setattr(service, "get_encoder", counted)
    monkeypatch.setattr(bulk, "CHUNK", 4)
    client = serve_without_ray(arguments)
    results = _send(client, *({"item_id": f"same{at}", "title": "The same words"} for at in range(6)))
    assert {each["status"] for each in results} == {"added"}
    assert calls[:1] == [4] and len(list((tmp_path / "items").iterdir())) == 2
    sids = [tuple(client.get(f"/v1/items/same{at}").json()["sid"]) for at in range(6)]
    assert len(set(sids)) == 6
    assert len({sid[:-1] for sid in sids}) == 1


def test_with_the_encoder_away_new_items_fail_and_nothing_of_their_chunk_is_written(arguments, tmp_path, monkeypatch):
    from serve import service

    def away(config):
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(service, "get_encoder", away)
    client = serve_without_ray(arguments)
    results = _send(client, {"item_id": "rope", "title": "A rope"}, b"x", {"item_id": "item01", "price": 9})
    assert [each["problem"]["type"] for each in results] == ["no-vectors", "invalid-json", "no-vectors"]
    assert not (tmp_path / "items").exists()
    assert [each["status"] for each in _send(client, {"item_id": "item01", "price": 9})] == ["changed"]


def test_a_bulk_is_bounded_and_says_what_it_is(arguments):
    client = serve_without_ray(arguments)
    many = client.post("/v1/items/bulk", content=b'{"item_id":"a"}\n' * (MAX_BULK + 1), headers=HEADERS)
    assert (many.status_code, many.json()["type"]) == (413, "too-many-lines")
    form = client.post("/v1/items/bulk", json={"item_id": "a"})
    assert (form.status_code, form.json()["type"]) == (415, "wrong-media-type")
    assert "Content-Type: application/x-ndjson, found 'application/json'" in form.json()["detail"]
    large = client.post("/v1/items/bulk", content=b" " * 1_000_001, headers=HEADERS)
    assert (large.status_code, large.json()["type"]) == (413, "body-too-large")
    assert _send(client) == []
