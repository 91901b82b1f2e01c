"""Events are durable when the reply says so, change the next list on every replica, and come once into the store."""

import asyncio
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa
import pytest

from digr.data.event_store import EVENTS, events_log, list_segments, load_log
from digr.serving.event_parts import build_parts
from serve.contract.problems import ProblemError
from serve.keys import make_key, written
from serve.live.events import read_events
from serve.settings import AppArguments, VersionSettings
from tests.buckets import serve_bucket
from tests.serve.tiny_run import BEAM_WIDTH, put, serve_without_ray, write_run


@pytest.fixture
def arguments(tiny_run, tmp_path):
    return AppArguments(run_dir=tiny_run.root, beam_width=BEAM_WIDTH, max_pending=1, state_dir=str(tmp_path))


def event(number: int, item: str, user: str = "u2", **more) -> dict:
    return {"event_id": f"e{number}", "type": "view", "user_id": user, "item_id": item} | more


def places(client, user: str) -> list[str]:
    """Items of the history that the next list of a user starts from."""
    client.post("/v1/recommend", json={"user_id": user})
    _, run = client.service.version(None)
    found = (run.users.find(user) or []) + client.service.recent_places(run, user)
    return run.facts.table.take(found, ["item_id"])["item_id"].to_pylist()


def stored(store: str) -> list[dict]:
    with duckdb.connect() as connection:
        load_log(connection, events_log(store), "events", EVENTS.names)
        return connection.sql("SELECT * FROM events ORDER BY event_id").to_arrow_table().to_pylist()


def test_the_next_list_of_a_user_sees_an_event_on_every_replica(arguments):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    before = two.post("/v1/recommend", json={"user_id": "u2"}).json()
    taken = one.post("/v1/events", json=event(1, "item40"))
    assert (taken.status_code, taken.json()) == (200, {"accepted": 1, "duplicates": 0, "retimed": 0, "errors": []})
    lists = [client.post("/v1/recommend", json={"user_id": "u2"}).json()["items"] for client in (one, two)]
    assert lists[0] == lists[1] != before["items"]
    asked = one.post("/v1/recommend", json={"history": ["item05", "item40"]}).json()["items"]
    assert [(item["item_id"], item["score"]) for item in lists[1]] == [(item["item_id"], item["score"]) for item in asked]


def test_a_user_whom_the_run_does_not_know_has_a_history_from_the_first_event_on(arguments):
    client = serve_without_ray(arguments)
    assert client.post("/v1/recommend", json={"user_id": "new"}).json()["source"] == "popularity"
    client.post("/v1/events", json=event(1, "item40", "new"))
    assert client.post("/v1/recommend", json={"user_id": "new"}).json()["source"] == "policy"


def test_a_replica_that_starts_later_has_read_what_was_posted(arguments):
    one = serve_without_ray(arguments, "one")
    one.post("/v1/events", json=[event(number, f"item4{number}") for number in range(3)])
    assert places(serve_without_ray(arguments, "two"), "u2") == ["item05", "item40", "item41", "item42"]


def test_the_same_event_again_changes_nothing_on_any_replica(arguments):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    body = [event(1, "item40"), event(2, "item41"), event(1, "item40")]
    assert one.post("/v1/events", json=body).json() == {"accepted": 2, "duplicates": 1, "retimed": 0, "errors": []}
    assert places(two, "u2") == ["item05", "item40", "item41"]
    assert two.post("/v1/events", json=event(2, "item42")).json()["duplicates"] == 1
    for client in (one, two):
        assert places(client, "u2") == ["item05", "item40", "item41"]
    assert [row["item_id"] for row in stored(one.service.arguments.events_dir)] == ["item40", "item41"]


def test_two_replicas_that_take_the_same_event_at_once_store_it_once(arguments):
    one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
    for client in (one, two):  # neither has heard of the other
        assert client.post("/v1/events", json=event(1, "item40")).json()["accepted"] == 1
    for client in (one, two):
        assert places(client, "u2") == ["item05", "item40"]
    assert len(stored(one.service.arguments.events_dir)) == 1


def test_an_event_is_on_the_disk_when_the_reply_comes(arguments, tmp_path, monkeypatch):
    client, synced = serve_without_ray(arguments), []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), real(file)))
    client.post("/v1/events", json=event(1, "item40"))
    [segment] = tmp_path.glob("events/events/segments/*/*.jsonl")
    assert segment.stat().st_size in synced
    [line] = segment.read_text().splitlines()
    assert json.loads(line)["item_id"] == "item40"


def test_a_store_that_fails_is_said_and_the_events_can_be_sent_again(arguments, monkeypatch):
    client = serve_without_ray(arguments)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    refused = client.post("/v1/events", json=event(1, "item40"))
    assert (refused.status_code, refused.json()["type"]) == (503, "not-stored")
    assert "send them again, the ids make that safe" in refused.json()["detail"]
    assert places(client, "u2") == ["item05"]
    monkeypatch.setattr(os, "fsync", real)
    assert client.post("/v1/events", json=event(1, "item40")).json()["accepted"] == 1
    assert places(client, "u2") == ["item05", "item40"]
    assert len(stored(client.service.arguments.events_dir)) == 1


def test_json_lines_are_taken_line_by_line_and_each_error_names_its_line(arguments):
    client = serve_without_ray(arguments)
    good, bad = json.dumps(event(1, "item40")), json.dumps(event(2, "item41", type="stare"))
    body = f"{good}\n\n{bad}\n{{\n{json.dumps(event(3, 'item42', type='rating'))}\n"
    reply = client.post("/v1/events", content=body, headers={"Content-Type": "application/x-ndjson"}).json()
    assert (reply["accepted"], [error["line"] for error in reply["errors"]]) == (1, [3, 4, 5])
    details = [error["detail"] for error in reply["errors"]]
    assert "type: Input should be 'view', 'cart', 'purchase' or 'rating'" in details[0]
    assert details[1].startswith("not JSON: ")
    assert "an event of type rating has a rating" in details[2]
    assert places(client, "u2") == ["item05", "item40"]


@pytest.mark.parametrize(
    ("body", "status", "cause", "detail"),
    [
        (b"", 400, "invalid-json", "cannot be read as JSON"),
        (b"[1,\n2", 400, "invalid-json", "cannot be read as JSON"),
        (b"[" * 5000, 400, "invalid-json", "cannot be read as JSON"),
        (b"7", 422, "invalid-request", "Input should be"),
        (json.dumps(event(1, "item40", time="2026-01-01T00:00:00")).encode(), 422, "invalid-request", "timezone"),
        (json.dumps(event(1, "item40", rating=3)).encode(), 422, "invalid-request", "no other event has one"),
        (json.dumps(event(1, "item40", type="rating", rating=float("nan"))).encode(), 422, "invalid-request", "finite"),
        (json.dumps(event(1, "a\0b")).encode(), 422, "invalid-request", "item_id: String should match pattern"),
        (json.dumps([event(number, "item40") for number in range(5001)]).encode(), 413, "too-many-events", "more than 5000"),
    ],
)
def test_a_body_that_is_not_events_is_a_problem(body, status, cause, detail):
    with pytest.raises(ProblemError) as raised:
        read_events(body)
    assert (raised.value.problem.status, raised.value.problem.type) == (status, cause)
    assert detail in raised.value.problem.detail


def test_without_a_place_to_keep_them_events_are_refused_and_lists_go_on(tiny_run):
    models = {"main": VersionSettings(run_dir=tiny_run.root)}
    client = serve_without_ray(AppArguments(models=models, beam_width=BEAM_WIDTH, max_pending=1))
    assert client.post("/v1/events", json=event(1, "item40")).json()["type"] == "no-state-dir"
    assert client.post("/v1/recommend", json={"user_id": "u2"}).status_code == 200


def test_a_time_in_the_future_or_over_30_days_ago_does_not_count_but_is_kept(arguments):
    client = serve_without_ray(arguments)
    now = datetime.now(UTC)
    told = {"e1": now + timedelta(hours=1), "e2": now - timedelta(days=31), "e3": now - timedelta(days=29), "e4": datetime.min}
    told["e4"] = datetime(1, 1, 1, tzinfo=UTC)
    body = [event(number, f"item4{number}", time=told[f"e{number}"].isoformat()) for number in range(1, 5)]
    assert client.post("/v1/events", json=body).json() == {"accepted": 4, "duplicates": 0, "retimed": 3, "errors": []}
    rows = {row["event_id"]: row for row in stored(client.service.arguments.events_dir)}
    for name in ("e1", "e2", "e4"):
        assert rows[name]["time"] == rows[name]["received"]
    assert abs(rows["e3"]["time"] - told["e3"]) < timedelta(milliseconds=1)
    assert abs(rows["e1"]["client_time"] - told["e1"]) < timedelta(milliseconds=1)
    assert places(client, "u2") == ["item05", "item43", "item41", "item42", "item44"]  # by time, then in the order of ids


def test_an_unknown_item_is_kept_in_the_store_and_changes_no_list(arguments):
    client = serve_without_ray(arguments)
    assert client.post("/v1/events", json=event(1, "nowhere")).json()["accepted"] == 1
    assert places(client, "u2") == ["item05"]
    assert [row["item_id"] for row in stored(client.service.arguments.events_dir)] == ["nowhere"]


def test_only_the_chosen_types_become_history_and_all_are_kept(arguments):
    chosen = arguments.model_copy(update={"history_events": ["purchase", "rating"]})
    client = serve_without_ray(chosen)
    body = [event(1, "item40"), event(2, "item41", type="purchase"), event(3, "item42", type="rating", rating=4.5)]
    client.post("/v1/events", json=[*body, event(4, "item43", type="cart")])
    assert places(client, "u2") == ["item05", "item41", "item42"]
    assert [row["rating"] for row in stored(client.service.arguments.events_dir)] == [None, None, 4.5, None]


def test_the_types_are_read_from_the_command_line():
    assert AppArguments.model_validate({"history_events": "purchase, cart"}).history_events == ["purchase", "cart"]
    with pytest.raises(ValueError, match="Input should be 'view', 'cart', 'purchase' or 'rating'"):
        AppArguments.model_validate({"history_events": "purchases"})


def test_more_events_than_may_wait_are_refused_until_some_are_written(arguments, monkeypatch):
    client = serve_without_ray(arguments)
    events, gate = client.service.events, threading.Event()
    events.commit.run(gate.wait)  # the disk takes its time
    assert events.commit.submit(lambda: b"", 20_000) is not None
    refused = client.post("/v1/events", json=event(1, "item40"))
    gate.set()
    assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (429, "too-many-waiting", "1")
    events.commit.flush()
    assert client.post("/v1/events", json=event(1, "item40")).json()["accepted"] == 1


def test_events_are_counted(arguments):
    client = serve_without_ray(arguments)
    client.post("/v1/events", json=[event(1, "item40"), event(1, "item40"), event(2, "item41", type="cart"), {}])
    text = client.get("/metrics").text
    for line in (
        'digr_events_total{outcome="accepted",replica="one",type="view"} 1.0',
        'digr_events_total{outcome="accepted",replica="one",type="cart"} 1.0',
        'digr_events_total{outcome="duplicate",replica="one",type="any"} 1.0',
        'digr_events_total{outcome="refused",replica="one",type="any"} 1.0',
    ):
        assert line in text


def test_a_new_replica_reads_parquet_back_up_to_what_it_may_keep(arguments):
    one = serve_without_ray(arguments, "one")
    one.post("/v1/events", json=[event(number, f"item4{number}") for number in range(5)])
    one.service.events.close()
    log = events_log(one.service.arguments.events_dir)
    assert build_parts(log, time.time() + 3600) == 1
    assert list_segments(log) == []
    assert places(serve_without_ray(arguments, "two"), "u2") == ["item05", *(f"item4{number}" for number in range(5))]
    few = serve_without_ray(arguments.model_copy(update={"max_state_events": 2}), "three")
    few.post("/v1/events", json=[event(number, f"item4{number}", "u9") for number in range(5, 7)])
    assert places(few, "u9") == ["item45", "item46"]
    assert places(few, "u2") == ["item05"]  # forgotten; the run's history is left


def test_events_that_the_run_knows_already_are_not_added_to_its_history(tmp_path):
    store = write_run(str(tmp_path / "run"))
    newest = datetime.now(UTC) - timedelta(hours=1)
    times = pa.array([newest - timedelta(days=1), newest], pa.timestamp("ms", "UTC"))
    rows = {
        "user_id": ["u1", "u2"],
        "position": pa.array([0, 0], pa.int32()),
        "item_id": ["item10", "item05"],
        "timestamp": times,
    }
    put(store, "interactions", rows)
    client = serve_without_ray(AppArguments(run_dir=store.root, beam_width=BEAM_WIDTH, max_pending=1))
    moments = (newest - timedelta(minutes=1), newest, newest + timedelta(minutes=1))
    body = [event(number, f"item4{number}", time=moment.isoformat()) for number, moment in enumerate(moments)]
    assert client.post("/v1/events", json=body).json()["retimed"] == 0
    assert places(client, "u2") == ["item05", "item42"]


def test_on_s3_an_event_is_an_object_and_other_replicas_see_it_when_they_look(arguments):
    with serve_bucket("live") as bucket:
        arguments = arguments.model_copy(update={"events_dir": f"{bucket}/events", "impressions": "off"})
        one, two = serve_without_ray(arguments, "one"), serve_without_ray(arguments, "two")
        assert one.post("/v1/events", json=event(1, "item40")).json()["accepted"] == 1
        assert [row["item_id"] for row in stored(f"{bucket}/events")] == ["item40"]
        assert places(one, "u2") == ["item05", "item40"]
        asyncio.run(two.service.follow_events())
        assert places(two, "u2") == ["item05", "item40"]


def test_any_key_may_send_events_and_nobody_without_one(arguments, tmp_path):
    key, record = make_key("reader", "read")
    (tmp_path / "keys.toml").write_text(written(record))
    client = serve_without_ray(arguments.model_copy(update={"keys_file": str(tmp_path / "keys.toml")}))
    assert client.post("/v1/events", json=event(1, "item40")).status_code == 401
    taken = client.post("/v1/events", json=event(1, "item40"), headers={"Authorization": f"Bearer {key}"})
    assert taken.json()["accepted"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        b'{"event_id": "\xff"}',
        b'{"event_id": "\\ud800", "type": "view", "user_id": "u", "item_id": "i"}',
        json.dumps(event(1, "item40", time=1e300)).encode(),
        json.dumps(event(1, "item40", time="9999-12-31T23:59:59-14:00")).encode(),
        json.dumps(event(1, "item40", time=-(10**30))).encode(),
        json.dumps(event(1, "item40", event_id="x" * 129)).encode(),
        json.dumps(event(1, "item40", recommendation_id="'; DROP TABLE")).encode(),
        json.dumps(event(1, "item40", price=3)).encode(),
        b"\n",
        b"null",
        b'{"event_id": 1e400}',
    ],
)
def test_nothing_that_is_sent_breaks_the_endpoint(arguments, wrong):
    client = serve_without_ray(arguments)
    for body in (wrong, b"[" + wrong + b"]", wrong + b"\n" + wrong):
        assert client.post("/v1/events", content=body).status_code in (200, 400, 422)
    assert client.post("/v1/events", json=event(7, "item41")).json()["accepted"] == 1


def test_many_senders_at_once_share_writes_and_each_event_is_there_once(arguments, monkeypatch):
    client, synced = serve_without_ray(arguments), []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real(file)))
    events, gate = client.service.events, threading.Event()
    events.commit.run(gate.wait)  # the disk takes its time, so that all come together

    async def send() -> list:
        posted = [asyncio.create_task(events.post(json.dumps(event(n, "item40", f"u{n % 7}")).encode())) for n in range(300)]
        while events.commit.num_waiting < 300:
            await asyncio.sleep(0)
        gate.set()
        return [reply.accepted for reply in await asyncio.gather(*posted)]

    assert asyncio.run(send()) == [1] * 300
    assert len(synced) <= 6  # one for the lines, the others for the names of new folders
    assert len(stored(client.service.arguments.events_dir)) == 300
