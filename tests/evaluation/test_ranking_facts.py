"""What the report says of the ranker, on lists whose answer is known."""

import pyarrow as pa
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.evaluation.ranking_facts import canonical_groups, feature_shares, source_table
from digr.tables import conform


def _put(store: Store, name: str, columns: dict) -> None:
    table = conform(name, pa.table(columns), "test")
    artifacts.commit(store, Manifest(name=name, rows=artifacts.write_table(store, name, table)))


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_each_source_has_its_part_of_the_lists_and_of_the_hits(store):
    names = ("example_id", "user_id", "split", "history", "target")
    rows = [("s0", "u", "test", ["x"], "a"), ("s1", "v", "test", ["x"], "d"), ("t0", "u", "train", ["x"], "c")]
    histories = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    _put(store, "histories", histories | {"target_timestamp": pa.nulls(3, pa.timestamp("ms", tz="UTC"))})
    lists = {"example_id": ["s1", "s0"], "item_ids": [["d", "a", "e"], ["b", "a", "c"]], "scores": [[3.0, 2.0, 1.0]] * 2}
    sources = [[["text"], ["text", "popular"], ["popular"]], [["text"], ["text", "popular"], ["generation"]]]
    kind = pa.list_(pa.list_(pa.string()))
    lists |= {"reasons": pa.nulls(2, kind), "sources": pa.array(sources, kind)}
    _put(store, "recommendations/ranked_test", lists)
    # the top 2 of both lists are four items, of which d and the a of s0 are hits
    assert source_table(store, 2) == [
        {"source": "text", "listed_rate": 1.0, "hit_rate": 1.0, "alone_rate": 0.5},
        {"source": "popular", "listed_rate": 0.5, "hit_rate": 0.5, "alone_rate": 0.0},
        {"source": "generation", "listed_rate": 0.0, "hit_rate": 0.0, "alone_rate": 0.0},
    ]


def test_canonical_interests_are_shown_by_their_items_with_some_of_their_phrases(store):
    columns = {"interest": ["trout", "bread", "fly fishing"], "num_items": [3, 2, 1]}
    columns |= {"groups": [[0, 0], [1, 1], [0, 2]], "names": [["trout", "trout"], ["bread", "bread"], ["trout", "fly fishing"]]}
    _put(store, "canonical_interests", columns)
    coarse, fine = canonical_groups(store)
    assert (coarse["num_groups"], coarse["num_phrases"], fine["num_groups"]) == (2, 3, 3)
    assert coarse["largest"][0] == {"name": "trout", "phrases": 2, "items": 4, "examples": ["fly fishing"]}
    assert [group["name"] for group in fine["largest"]] == ["trout", "bread", "fly fishing"]


def test_a_canonical_interest_that_was_kept_has_its_name_and_not_that_of_its_most_usual_phrase(store):
    columns = {"interest": ["river trout", "trout"], "num_items": [9, 1], "groups": [[0], [0]], "names": [["trout"]] * 2}
    _put(store, "canonical_interests", columns)
    (grain,) = canonical_groups(store)
    assert grain["largest"] == [{"name": "trout", "phrases": 2, "items": 10, "examples": ["river trout"]}]


def test_the_shares_of_features_are_added_up_by_what_they_speak_of(store):
    artifacts.begin(store, "ranker")
    shares = {"transitions": 0.25, "next": 0.25, "interest_mean": 0.125, "interest_lift_0": 0.25, "text_last": 0.125}
    artifacts.commit(store, Manifest(name="ranker", facts={"ranked/test": {"feature_shares": shares}}))
    assert feature_shares(store) == {"counts": 0.5, "interests": 0.375, "text": 0.125}


def test_a_run_without_a_ranker_has_nothing_to_say(store):
    assert (source_table(store, 10), feature_shares(store), canonical_groups(store)) == (None, None, None)
