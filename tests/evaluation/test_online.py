"""What the log says of the lists equals a count by hand, list by list and event by event."""

import json
import math
from collections import defaultdict
from pathlib import Path

import duckdb
import numpy as np
import pytest

from digr.data.event_store import EVENTS, create_store, events_log, impressions_log
from digr.evaluation.online import evaluate_online, online_text, read_logs
from digr.serving.event_log import SegmentWriter
from digr.serving.event_parts import build_parts

HOUR = 3_600_000
KS = (1, 2, 4)


def shown(name: str, time: int, items: list, **more) -> dict:
    """A list of (item, sources, interest)."""
    listed = [
        {"item_id": item, "position": position, "sources": list(sources), "interest": interest}
        for position, (item, sources, interest) in enumerate(items, 1)
    ]
    plain = {"recommendation_id": name, "received": time, "user_id": "u", "history": "h", "model": "main", "experiment": None}
    return plain | {"arm": None, "shadow": False, "list_source": "ranker", "items": listed} | more


def happened(name: str, time: int, item: str, **more) -> dict:
    plain = {"event_id": name, "type": "view", "user_id": "u", "item_id": item, "time": time, "received": time}
    return dict.fromkeys(EVENTS.names) | plain | more


def write(store: Path, lists: list[dict], events: list[dict]) -> str:
    create_store(str(store))
    for log, rows in ((impressions_log(str(store)), lists), (events_log(str(store)), events)):
        for part in (rows[::2], rows[1::2]):  # half of it as Parquet, half as segments
            build_parts(log, 9e9)
            writer = SegmentWriter(log, lambda: 0.0)
            writer.append(b"".join(json.dumps(row).encode() + b"\n" for row in part))
            writer.close()
    return str(store)


def measure(store: str, resamples: int = 10, **choices) -> tuple[tuple, dict]:
    with duckdb.connect() as connection:
        counts = read_logs(connection, store, **{"types": (), "window_seconds": 3600.0} | choices)
        table = evaluate_online(connection, KS, resamples=resamples, rng=np.random.default_rng(1), most=50)
    return counts, {(row["by"], row["slice"], row["name"], row["k"]): row for row in table.to_pylist()}


def random_log(seed: int) -> tuple[list[dict], list[dict]]:
    rng = np.random.default_rng(seed)
    items, lists, events = [f"i{number}" for number in range(7)], [], []
    for number in range(60):
        listed = [
            (item, rng.choice(["generation", "repeats", "popular"], rng.integers(1, 3), replace=False).tolist(), interest)
            for item, interest in zip(rng.permutation(items)[:4].tolist(), rng.choice(["x", "y", None], 4), strict=True)
        ]
        user = None if rng.random() < 0.2 else f"u{rng.integers(6)}"
        model, arm = str(rng.choice(["main", "new"])), None
        if user and rng.random() < 0.5:
            arm = model
        about = {"user_id": user, "history": f"h{rng.integers(3)}", "model": model, "arm": arm}
        about |= {"experiment": arm and "test"}
        name, time = f"r{number:02d}", int(rng.integers(0, 20)) * HOUR // 4 + number  # no two at the same time
        lists.append(shown(name, time, listed, **about))
        if rng.random() < 0.4:
            lists.append(shown(name, time, listed[::-1][:3], **about | {"shadow": True, "model": "next", "arm": None}))
    for number in range(120):
        named = f"r{rng.integers(70):02d}" if rng.random() < 0.4 else None
        about = {"user_id": f"u{rng.integers(6)}", "recommendation_id": named, "type": str(rng.choice(["view", "purchase"]))}
        events.append(happened(f"e{number}", int(rng.integers(0, 24)) * HOUR // 4, str(rng.choice(items)), **about))
    return lists, events


def followed(lists: list[dict], event: dict, shadow: bool) -> list[int]:
    """The lists that an event follows."""
    mine = [
        (place, one)
        for place, one in enumerate(lists)
        if one["shadow"] == shadow and event["item_id"] in [item["item_id"] for item in one["items"]]
    ]
    named = [
        place
        for place, one in mine
        if one["recommendation_id"] == event["recommendation_id"]
        and one["user_id"] in (None, event["user_id"])
        and event["time"] <= one["received"] + HOUR
    ]
    earlier = [
        (one["received"], place)
        for place, one in mine
        if one["user_id"] == event["user_id"] and 0 <= event["time"] - one["received"] <= HOUR
    ]
    return named or [place for _, place in sorted(earlier)[-1:]]


def slices_of(one: dict) -> dict[tuple, list[dict]]:
    """The items of a list that count in each slice."""
    if one["shadow"]:
        return {("shadow", one["model"]): one["items"]}
    slices = defaultdict(list, {("all", "all"): one["items"], ("model", one["model"]): one["items"]})
    if one["arm"]:
        slices["arm", f"test/{one['arm']}"] = one["items"]
    for item in one["items"]:
        for source in item["sources"]:
            slices["source", source].append(item)
        if item["interest"]:
            slices["interest", item["interest"]].append(item)
    return slices


def measures(positions: list[int], k: int) -> tuple[float, float]:
    """HR@k and NDCG@k of the positions that were followed."""
    best = sum(1 / math.log2(1 + position) for position in range(1, min(len(positions), k) + 1))
    gains = [1 / math.log2(1 + position) for position in positions if position <= k]
    return float(bool(gains)), sum(gains) / best if gains else 0.0


def by_hand(lists: list[dict], events: list[dict], types: tuple) -> dict:
    """Slice and cutoff -> the two means over its lists."""
    chosen = [event for event in events if not types or event["type"] in types]
    hits = {(place, event["item_id"]) for event in chosen for shadow in (0, 1) for place in followed(lists, event, bool(shadow))}
    found = defaultdict(list)
    for place, one in enumerate(lists):
        for key, items in slices_of(one).items():
            positions = [item["position"] for item in items if (place, item["item_id"]) in hits]
            for k in KS:
                if items[0]["position"] <= k:
                    found[(*key, k)].append(measures(positions, k))
    return {key: np.mean(values, axis=0).tolist() for key, values in found.items()}


@pytest.mark.parametrize(("seed", "types"), [(1, ()), (2, ()), (3, ("purchase",))])
def test_every_slice_equals_a_count_by_hand(tmp_path, seed, types):
    lists, events = random_log(seed)
    counts, found = measure(write(tmp_path, lists, events), types=types)
    expected = by_hand(lists, events, types)
    assert {(by, name, k) for by, name, _, k in found} == set(expected)
    assert len({by for by, *_ in found}) == 6
    assert sum(row["value"] > 0 for row in found.values()) > 10
    for (by, name, k), values in expected.items():
        assert [found[by, name, measure, k]["value"] for measure in ("hr", "ndcg")] == pytest.approx(values)
    assert found["all", "all", "hr", 4]["num_lists"] == sum(not one["shadow"] for one in lists)
    assert counts.lists == len(lists)


def test_intervals_resample_users_and_not_lists(tmp_path):
    """Half of 20 users follow each of their 30 lists, the others none: 600 lists, but only 20 independent users."""
    lists = [shown(f"{user:02d}-{n}", n, [("a", ["s"], None)], user_id=f"u{user}") for user in range(20) for n in range(30)]
    events = [happened(one["recommendation_id"], 9, "a", user_id=one["user_id"], recommendation_id=one["recommendation_id"])
              for one in lists if int(one["user_id"][1:]) % 2]  # fmt: skip
    _, found = measure(write(tmp_path, lists, events), resamples=4000)
    row = found["all", "all", "hr", 1]
    assert (row["value"], row["num_lists"], row["num_users"]) == (0.5, 600, 20)
    drawn = np.random.default_rng(7).integers(0, 2, (4000, 20)).mean(axis=1)
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.051)
    assert row["high"] - row["low"] > 0.3  # resampled lists would give 0.08


ONE = [("a", ["s"], None), ("b", ["s"], None)]


@pytest.mark.parametrize(
    ("event", "position"),
    [
        (happened("e", 3 * HOUR, "b", recommendation_id="r"), None),  # after the window
        (happened("e", HOUR, "b", recommendation_id="r"), 2),
        (happened("e", HOUR, "b"), 2),
        (happened("e", HOUR + 1, "b"), None),
        (happened("e", -1, "a"), None),  # before the list
        (happened("e", -1, "a", recommendation_id="r"), 1),  # the client's clock is behind: the id says that it came after
        (happened("e", 5, "c", recommendation_id="r"), None),
        (happened("e", 5, "a", user_id="v"), None),
        (happened("e", 5, "a", user_id="v", recommendation_id="r"), None),  # somebody else's list
        (happened("e", 5, "a", recommendation_id="lost"), 1),  # that list was never logged
    ],
)
def test_an_event_follows_the_list_it_names_else_one_of_its_user(tmp_path, event, position):
    _, found = measure(write(tmp_path, [shown("r", 0, ONE)], [event]))
    values = [found["all", "all", "hr", k]["value"] for k in (1, 2)]
    assert values == [float(position == 1), float(position is not None)]


def test_an_event_counts_once_for_the_newest_list_that_has_its_item(tmp_path):
    lists = [shown("r1", 0, ONE), shown("r2", 10, ONE), shown("r3", 20, [("c", ["s"], None)])]
    counts, found = measure(write(tmp_path, lists, [happened("e1", 30, "a"), happened("e1", 30, "a")]))
    assert found["all", "all", "hr", 1]["value"] == pytest.approx(1 / 3)
    assert (counts.events, counts.by_user, counts.named) == (1, 1, 0)


def test_a_log_without_lists_is_an_error(tmp_path):
    create_store(str(tmp_path))
    with duckdb.connect() as connection, pytest.raises(ValueError, match="no list was logged; serve with an events_dir"):
        read_logs(connection, str(tmp_path), types=(), window_seconds=1)


def test_the_result_is_shown_as_a_table(tmp_path):
    write(tmp_path, [shown("r", 0, ONE)], [happened("e", 5, "b")])
    with duckdb.connect() as connection:
        read_logs(connection, str(tmp_path), types=(), window_seconds=60)
        text = online_text(evaluate_online(connection, [2], resamples=5, rng=np.random.default_rng(0), most=5))
    assert text.splitlines()[1].split() == ["all", "all", "hr@2", "1.0000", "1.0000-1.0000", "1", "1"]
    assert text.splitlines()[2].split()[2:4] == ["ndcg@2", "0.6309"]


def test_lists_of_similar_items_count_in_slices_of_their_own(tmp_path):
    about = {"user_id": None, "list_source": "similar"}
    lists = [
        shown("a", 0, [("i1", ["ranker"], "x"), ("i2", ["ranker"], None)]),
        shown("b", 5, [("i3", ["text"], "y"), ("i1", ["text"], "y")], **about),
    ]
    events = [happened("e", 9, "i1", recommendation_id="b")]  # so it does not follow the user's list
    counts, found = measure(write(tmp_path / "store", lists, events))
    assert (counts.lists, counts.named, counts.by_user) == (2, 1, 0)
    assert {key[:2] for key in found} == {
        *{("all", "all"), ("model", "main"), ("source", "ranker"), ("interest", "x")},
        ("similar", "main"),
    }
    assert found["all", "all", "hr", 2]["value"] == 0
    assert [found["similar", "main", "hr", k]["value"] for k in (1, 2)] == [0, 1]
