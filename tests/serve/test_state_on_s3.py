"""The state of the replicas on S3: what a folder does, a bucket does; the server is moto's, spoken to over HTTP."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from digr.serving.journal import Journal
from digr.serving.state import open_state
from serve.settings import AppArguments, VersionSettings
from tests.buckets import serve_bucket
from tests.serve.tiny_run import BEAM_WIDTH, serve_without_ray, write_run

LAMP = {"item_id": "lamp", "title": "A brass lamp", "interests": ["light"]}


@pytest.fixture(scope="module")
def bucket():
    with serve_bucket("state") as address:
        yield address


@pytest.fixture
def arguments(tiny_run, bucket, tmp_path):
    return AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, state_dir=f"{bucket}/{tmp_path.name}")


def test_items_are_added_changed_and_deleted_on_every_replica_and_after_a_restart(arguments):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    sid = one.post("/v1/items", json=LAMP).json()["sids"]["main"]
    one.patch("/v1/items/lamp", json={"price": 4.5})
    one.delete("/v1/items/item01")
    asyncio.run(two.service.follow())
    for replica in (one, two, serve_without_ray(arguments, "three")):
        item = replica.get("/v1/items/lamp").json()
        assert (item["sid"], item["price"]) == (sid, 4.5)
        assert replica.get("/v1/items/item01").status_code == 404
    _, _, prefix = arguments.state_dir.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_objects_v2(Bucket="state", Prefix=prefix)["Contents"]
    assert [each["Key"].removeprefix(f"{prefix}/") for each in found if "/items/" in each["Key"]] == [
        f"items/{number:09d}.json" for number in (1, 2, 3)
    ]


def test_a_promotion_goes_over_the_bucket(arguments, tiny_run, tmp_path):
    models = {"a": VersionSettings(run_dir=tiny_run.root), "b": VersionSettings(run_dir=write_run(str(tmp_path), seed=5).root)}
    arguments = AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1, state_dir=arguments.state_dir)
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    assert one.post("/v1/models", json={"action": "promote", "model": "b"}).status_code == 200
    asyncio.run(two.service.follow())
    assert two.get("/healthz").json()["model"] == "b"


def test_writers_at_once_lose_nothing_and_agree_on_the_order(arguments):
    def write(writer: int) -> None:
        journal, last = Journal(open_state(arguments.state_dir), "j"), 0
        for value in range(5):
            last = journal.append({"writer": writer, "value": value}, last)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    entries = [entry.value for entry in Journal(open_state(arguments.state_dir), "j").read(0)]
    assert len(entries) == 20
    for writer in range(4):
        assert [entry["value"] for entry in entries if entry["writer"] == writer] == list(range(5))


def test_a_broken_object_is_set_aside_and_a_bucket_that_is_away_is_a_problem(arguments):
    state = open_state(arguments.state_dir)
    state.create("items/000000001.json", b"\xff")
    state.create("items/000000002.json", json.dumps({"operations": [{"op": "put", "item": LAMP}]}).encode())
    client = serve_without_ray(arguments)
    assert list(client.get("/v1/models").json()["set_aside"]) == ["items/000000001.json"]
    assert client.get("/v1/items/lamp").status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away = client.post("/v1/items", json=LAMP | {"item_id": "other"})
        assert (away.status_code, away.json()["type"], away.headers["retry-after"]) == (503, "state-not-reached", "5")
        assert client.post("/v1/models", json={"action": "roll_back"}).json()["type"] == "state-not-reached"
        assert client.post("/v1/recommend", json={"history": ["item01"]}).status_code == 200
    assert client.post("/v1/items", json=LAMP | {"item_id": "other"}).json()["is_new"] is True
