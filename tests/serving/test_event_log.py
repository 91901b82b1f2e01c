"""A log keeps every acknowledged row exactly once: across replicas, crashes at any step, and the making of Parquet parts."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.data.event_store import EVENTS, Log, create_store, events_log, is_store, list_segments, load_log, read_lines
from digr.files import list_parts
from digr.serving.event_log import SegmentFollower, SegmentWriter
from digr.serving.event_parts import build_parts
from digr.serving.user_states import UserStates
from tests.buckets import serve_bucket

HOUR = 3600.0
NOON = 1_800_000_000.0  # 2027-01-15T08:00:00Z


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serve_bucket("events") as address:
        yield address


@pytest.fixture(params=["disk", "s3"])
def log(request, tmp_path) -> Log:
    if request.param == "disk":
        return events_log(str(tmp_path / "store"))
    return events_log(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def row(name: str, time: int = 0, **more) -> dict:
    empty = dict.fromkeys(EVENTS.names)
    return (
        empty | {"event_id": name, "type": "view", "user_id": "u", "item_id": f"i{name}", "time": time, "received": time} | more
    )


def lines(*names: str) -> bytes:
    return b"".join(json.dumps(row(name)).encode() + b"\n" for name in names)


def stored(log: Log) -> list[str]:
    with duckdb.connect() as connection:
        load_log(connection, log, "events", EVENTS.names)
        return [name for (name,) in connection.execute("SELECT event_id FROM events ORDER BY event_id").fetchall()]


def in_parts(log: Log) -> list[str]:
    from digr.files import filesystem_of

    tables = [pq.read_table(part, filesystem=filesystem_of(log.uri)[0]) for part in list_parts(log.parts)]
    return sorted(name for table in tables for name in table["event_id"].to_pylist())


def followed(follower: SegmentFollower) -> list[str]:
    return [name for table in follower.read() for name in table["event_id"].to_pylist()]


def test_what_one_writes_another_follows_once_and_the_store_has_it(log):
    clock = Clock()
    one, two = SegmentWriter(log, clock), SegmentWriter(log, clock)
    follower = SegmentFollower(log, clock, two.name)
    one.append(lines("a"))
    two.append(lines("own"))
    assert followed(follower) == ["a"]
    one.append(lines("b", "c"))
    assert followed(follower) == ["b", "c"]
    assert followed(follower) == []
    clock.now += HOUR
    one.append(lines("d"))
    assert followed(follower) == ["d"]
    assert stored(log) == ["a", "b", "c", "d", "own"]


def test_a_follower_that_slept_for_hours_misses_nothing_that_is_still_in_segments(log):
    clock = Clock()
    one, follower = SegmentWriter(log, clock), SegmentFollower(log, clock, "nobody")
    assert followed(follower) == []
    for name in "abc":
        one.append(lines(name))
        clock.now += 90
    assert followed(follower) == ["a", "b", "c"]
    clock.now += 200 * HOUR
    one.append(lines("d"))
    assert followed(follower) == ["d"]


def test_past_hours_become_parquet_and_this_one_does_not(log):
    clock = Clock()
    one = SegmentWriter(log, clock)
    one.append(lines("a"))
    one.append(lines("b"))
    clock.now += HOUR
    one.append(lines("c"))
    assert build_parts(log, clock.now) == 1
    assert in_parts(log) == ["a", "b"]
    assert [part.split("/")[-2] for part in list_parts(log.parts)] == ["hour=2027-01-15T08"]
    assert len(list_segments(log)) == 1
    assert stored(log) == ["a", "b", "c"]
    assert build_parts(log, clock.now) == 0


class Crash(Exception):
    pass


def test_a_crash_between_part_and_removal_leaves_no_row_twice(log):
    clock = Clock()
    one, two = SegmentWriter(log, clock), SegmentWriter(log, clock)
    one.append(lines("a"))
    two.append(lines("b"))
    one.close(), two.close()
    clock.now += HOUR

    def crash(fs, path) -> None:
        raise Crash

    with pytest.raises(Crash):
        build_parts(log, clock.now, crash)
    assert len(list_segments(log)) == 2
    assert stored(log) == in_parts(log) == ["a", "b"]
    assert build_parts(log, clock.now) == 0
    assert (list_segments(log), in_parts(log), stored(log)) == ([], ["a", "b"], ["a", "b"])


def test_a_writer_that_sleeps_over_the_hour_loses_nothing(tmp_path):
    """Its segment looks past, but is still open: it must not be taken for closed."""
    log, clock = events_log(str(tmp_path)), Clock()
    asleep = SegmentWriter(log, clock)
    asleep.append(lines("a"))
    assert build_parts(log, NOON + 5 * HOUR) == 0
    asleep.append(lines("b"))  # its clock stands still
    asleep.close()
    assert build_parts(log, NOON + 5 * HOUR) == 1
    assert in_parts(log) == ["a", "b"]


def test_a_process_that_is_killed_closes_its_segment_and_half_a_line_is_no_row(tmp_path):
    log = events_log(str(tmp_path))
    code = (
        "import os, sys; from digr.data.event_store import events_log; from digr.serving.event_log import SegmentWriter\n"
        f"writer = SegmentWriter(events_log({str(tmp_path)!r}), lambda: {NOON})\n"
        f'writer.append({lines("a")!r}); os.write(writer._file, b\'{{"event_id": "half\'); os.kill(os.getpid(), 9)'
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    follower = SegmentFollower(log, Clock(), "nobody")
    assert followed(follower) == ["a"]
    assert build_parts(log, NOON + HOUR) == 1
    assert in_parts(log) == stored(log) == ["a"]


def test_only_one_process_builds_parts_on_a_disk(tmp_path):
    import fcntl

    log, clock = events_log(str(tmp_path)), Clock()
    writer = SegmentWriter(log, clock)
    writer.append(lines("a"))
    writer.close()
    with (tmp_path / "events" / ".parts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert build_parts(log, NOON + HOUR) == 0
    assert build_parts(log, NOON + HOUR) == 1


def test_a_line_that_is_no_row_is_set_aside_and_the_rest_goes_on(tmp_path, caplog):
    log, clock = events_log(str(tmp_path)), Clock()
    writer = SegmentWriter(log, clock)
    writer.append(lines("a") + b"{broken\n" + lines("b"))
    writer.close()
    follower = SegmentFollower(log, clock, "nobody")
    assert followed(follower) == ["a", "b"]
    build_parts(log, NOON + HOUR)
    assert in_parts(log) == ["a", "b"]
    [kept] = (tmp_path / "events" / "_damaged").iterdir()
    assert kept.read_bytes() == b"{broken\n"
    assert "1 lines are no rows; they are kept in" in caplog.text


def test_of_rows_with_one_id_the_first_received_counts(tmp_path):
    log = events_log(str(tmp_path))
    writer = SegmentWriter(log, Clock())
    rows = [row("a", received=5, item_id="a late one"), row("a", received=2, item_id="the first"), row("b", received=1)]
    writer.append(b"".join(json.dumps(each).encode() + b"\n" for each in rows))
    with duckdb.connect() as connection:
        load_log(connection, log, "events", EVENTS.names)
        assert connection.execute("SELECT event_id, item_id FROM events ORDER BY 1").fetchall() == [
            ("a", "the first"),
            ("b", "ib"),
        ]


def test_a_store_is_known_by_its_mark(tmp_path):
    assert not is_store(str(tmp_path))
    create_store(str(tmp_path))
    before = (tmp_path / "_store.json").read_text()
    create_store(str(tmp_path))
    assert is_store(str(tmp_path)) and (tmp_path / "_store.json").read_text() == before
    assert json.loads(before) == {"kind": "digr events", "version": 1}


def test_times_come_back_as_they_were_written():
    table, bad = read_lines(EVENTS, json.dumps(row("a", 1_800_000_000_123)).encode() + b"\n")
    assert bad == []
    assert table["time"].cast(pa.int64()).to_pylist() == [1_800_000_000_123]


WRITES = st.tuples(st.just("write"), st.integers(0, 1))
OTHERS = st.sampled_from([("hour", 0), ("parts", 0), ("crash", 0)])


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.one_of(WRITES, OTHERS), max_size=14))
def test_whatever_the_order_of_writes_hours_parts_and_crashes_every_row_is_there_once(tmp_path_factory, steps):
    log, clock = events_log(str(tmp_path_factory.mktemp("log"))), Clock()
    writers = [SegmentWriter(log, clock), SegmentWriter(log, clock)]
    follower, written, heard = SegmentFollower(log, clock, "nobody"), list[str](), list[str]()
    removed = 0

    def crash(fs, path) -> None:
        nonlocal removed
        removed += 1
        if removed % 2:
            fs.delete_file(path)
        else:
            raise Crash

    for step, which in steps:
        if step == "write":
            written.append(f"{len(written):03d}")
            writers[which].append(lines(written[-1]))
        elif step == "hour":
            heard += followed(follower)
            clock.now += HOUR
            for writer in writers:
                writer.close_past()
        else:
            heard += followed(follower)
            with contextlib.suppress(Crash):
                build_parts(log, clock.now, crash if step == "crash" else lambda fs, path: fs.delete_file(path))
    heard += followed(follower)
    for writer in writers:
        writer.close()
    assert stored(log) == sorted(heard) == written
    build_parts(log, clock.now + HOUR)
    assert in_parts(log) == written
    assert list(Path(log.uri).glob("segments/*/*.jsonl")) == []


def test_a_user_has_the_newest_events_in_the_order_of_time():
    states = UserStates(["view"], max_events=100, max_per_user=3, max_ids=100)
    states.add([row(name, time) for name, time in (("a", 5), ("b", 1), ("c", 9), ("d", 7), ("a", 99))])
    assert states.items_of("u", None) == ["ia", "id", "ic"]
    assert states.items_of("u", 7) == ["ic"]
    assert states.items_of("other", None) == []
    states.add([row("e", 20, type="cart")])
    assert states.items_of("u", None) == ["ia", "id", "ic"]
    assert states.knows("e") and not states.knows("f")


@settings(max_examples=200, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.integers(0, 20)), max_size=60),
    max_events=st.integers(1, 12),
)
def test_memory_is_bounded_and_the_users_seen_last_stay(events, max_events):
    states, users, ids = UserStates(["view"], max_events, 4, 1000), dict[str, list[tuple]](), set[str]()
    for name, user, time in events:
        states.add([row(str(name), time, user_id=f"u{user}")])
        if name in ids:
            continue
        ids.add(name)
        mine = users.pop(f"u{user}", [])
        users[f"u{user}"] = sorted([*mine, (time, time, str(name))])[-4:]
        while sum(map(len, users.values())) > max_events:
            users.pop(next(iter(users)))
    assert len(states) == sum(map(len, users.values())) <= max_events
    for user in range(5):
        assert states.items_of(f"u{user}", None) == [f"i{name}" for _, _, name in users.get(f"u{user}", [])]


def test_ids_are_forgotten_in_the_order_in_which_they_came():
    states = UserStates(["view"], 100, 100, max_ids=2)
    states.add([row("a"), row("b"), row("c")])
    assert [states.knows(name) for name in "abc"] == [False, True, True]
