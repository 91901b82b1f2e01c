"""The loop closes: what was posted is imported, each event once and in the order of its times, and prepared as interactions."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digr.data.event_store import EVENTS, create_store, events_log
from digr.data.importing.writing import import_data
from digr.serving.event_log import SegmentWriter
from digr.serving.event_parts import build_parts
from tests.buckets import serve_bucket
from tests.data.test_common_form import prepare

NOON = 1_800_000_000.0
HOUR = 3600.0


def _event(name: str, item: str, seconds: float, user: str = "u1", **more) -> dict:
    time = int((NOON + seconds) * 1000)
    plain = {"event_id": name, "type": "view", "user_id": user, "item_id": item, "time": time, "received": time}
    return dict.fromkeys(EVENTS.names) | plain | more


def _write(store: str, *hours: list[dict]) -> None:
    """Write events of several hours, all but the last of which become Parquet."""
    create_store(store)
    log, now = events_log(store), NOON
    for events in hours:
        build_parts(log, now)
        writer = SegmentWriter(log, lambda now=now: now)
        writer.append(b"".join(json.dumps(event).encode() + b"\n" for event in events))
        writer.close()
        now += HOUR


HOURS = (
    [_event("e1", "a", 10), _event("e2", "b", 5), _event("e3", "a", 30, "u2", type="rating", rating=4.0)],
    [_event("e2", "c", 4000), _event("e4", "c", 3700, type="cart"), _event("e5", "gone", 3800)],
    [
        _event("e6", "b", 7300, "u2"),
        _event("e4", "c", 3700, type="cart"),
        _event("e7", "d", 7300, "u2", type="purchase"),
        _event("e8", "d", 7400),
    ],
)


def _items(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"item_id": list("abcd"), "title": ["A", "B", "C", "D"]}), folder / "items.parquet")
    return str(folder / "items.parquet")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOON + seconds, UTC)


def test_posted_events_become_interactions_each_once_and_in_order(tmp_path):
    store, out, told = str(tmp_path / "store"), tmp_path / "out", list[str]()
    _write(store, *HOURS)
    facts = import_data([store, _items(tmp_path / "shop")], str(out), told.append)
    assert {file["format"] for file in facts["files"]} == {"digr-events", "names"}
    rows = pq.read_table(out / "interactions.parquet").to_pylist()
    assert [(row["user_id"], row["item_id"], row["timestamp"], row["rating"]) for row in rows] == [
        ("u1", "b", _time(5), None),
        ("u1", "a", _time(10), None),
        ("u2", "a", _time(30), 4.0),
        ("u1", "c", _time(3700), None),
        ("u1", "gone", _time(3800), None),
        ("u2", "b", _time(7300), None),
        ("u2", "d", _time(7300), None),
        ("u1", "d", _time(7400), None),
    ]
    prepared = prepare(str(out), orphans="drop")
    assert [(row["user_id"], row["position"], row["item_id"]) for row in prepared.interactions.to_pylist()] == [
        ("u1", 0, "b"),
        ("u1", 1, "a"),
        ("u1", 2, "c"),
        ("u1", 3, "d"),
        ("u2", 0, "a"),
        ("u2", 1, "b"),
        ("u2", 2, "d"),
    ]


def test_types_are_chosen_like_the_events_of_any_log(tmp_path):
    store, out = str(tmp_path / "store"), tmp_path / "out"
    _write(store, *HOURS)
    import_data([store, _items(tmp_path / "shop")], str(out), lambda line: None, events=["purchase", "cart"])
    assert pq.read_table(out / "interactions.parquet")["item_id"].to_pylist() == ["c", "d"]


def test_events_are_read_beside_the_log_of_the_run_before(tmp_path):
    store, shop, out = str(tmp_path / "store"), tmp_path / "shop", tmp_path / "out"
    _write(store, *HOURS)
    items = _items(shop)
    old = {"user_id": ["u1"], "item_id": ["d"], "timestamp": pa.array([_time(-60)], pa.timestamp("ms", "UTC"))}
    pq.write_table(pa.table(old), shop / "interactions.parquet")
    import_data([items, str(shop / "interactions.parquet"), store], str(out), lambda line: None)
    rows = pq.read_table(out / "interactions.parquet").to_pylist()
    assert [row["item_id"] for row in rows if row["user_id"] == "u1"] == ["d", "b", "a", "c", "gone", "d"]


def test_a_store_on_s3_is_read_the_same(tmp_path):
    with serve_bucket("live") as bucket:
        _write(f"{bucket}/store", *HOURS)
        import_data([f"{bucket}/store", _items(tmp_path / "shop")], str(tmp_path / "out"), lambda line: None)
    found = pq.read_table(tmp_path / "out" / "interactions.parquet")["item_id"].to_pylist()
    assert found == ["b", "a", "a", "c", "gone", "b", "d", "d"]


def test_an_empty_store_is_an_error_that_says_what_to_do(tmp_path):
    create_store(str(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"store: the store of events is empty; post some to the endpoint first"):
        import_data([str(tmp_path / "store"), _items(tmp_path / "shop")], str(tmp_path / "out"), lambda line: None)
