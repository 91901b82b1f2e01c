"""Labels keep the order of the interests and name who gave them; quality is the confidence-weighted share of positives."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from sklearn.metrics import cohen_kappa_score

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.rewards.labeling import (
    combined_probability,
    item_quality,
    label_interests,
    labeler_facts,
    owner_texts,
    quality_histogram,
    votes_of,
)
from digr.tables import conform

NAN = math.nan


def _interests(**columns) -> pa.Table:
    rows = {"owner": ["item"] * 4, "owner_id": ["b", "a", "a", "a"], "rank": pa.array([0, 1, 0, 2], pa.int32())}
    return pa.table(rows | {"interest": ["drill", "drill", "garden", "edge"]} | columns)


def test_labels_keep_the_order_of_the_interests_and_say_which_labeler_gave_what():
    votes = {"classifier": np.array([0.9, 0.2, 0.5, NAN]), "judge": np.array([NAN, 0.2, 0.9, NAN])}
    labels = conform("interest_labels", label_interests(_interests(), votes, "any", threshold=0.5), "test")
    columns = ["owner_id", "rank", "interest", "probability", "label", "labeler", "classifier_probability", "judge_probability"]
    assert [tuple(row.values()) for row in labels.select(columns).to_pylist()] == [
        ("b", 0, "drill", 0.9, 1, "classifier", 0.9, None),
        ("a", 1, "drill", 0.2, 0, "classifier+judge", 0.2, 0.2),
        ("a", 0, "garden", 0.9, 1, "classifier+judge", 0.5, 0.9),
        ("a", 2, "edge", 0.0, 0, "none", None, None),
    ]
    assert labels["behavioural_probability"].null_count == 4


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("all", [0.2, 0.3, 0.0]), ("any", [0.9, 0.3, 0.0]), ("mean", [0.6, 0.3, 0.0])],
)
def test_several_opinions_become_one_as_the_config_says(combine, expected):
    # log-odds of .9 and .2: their mean is that of .6
    given = np.array([[0.9, 0.3, NAN], [0.2, NAN, NAN]])
    np.testing.assert_allclose(combined_probability(given, combine), expected, atol=1e-12)


def test_two_sure_and_contrary_labelers_give_even_odds():
    assert combined_probability(np.array([[1.0], [0.0]]), "mean")[0] == pytest.approx(0.5)


def test_a_batch_without_interests_gives_an_empty_table_of_the_right_columns():
    labels = label_interests(_interests().slice(0, 0), {"classifier": np.zeros(0)}, "mean", threshold=0.5)
    assert len(conform("interest_labels", labels, "test")) == 0


def test_votes_find_their_interest_by_the_whole_key():
    key = ["owner", "owner_id", "rank"]
    given = _interests().select(key).slice(0, 3).append_column("probability", pa.array([0.1, 0.2, None], pa.float64()))
    votes = votes_of(_interests(), pads.dataset(given.take([2, 1, 0])), key, "owner_id")
    np.testing.assert_array_equal(votes, [0.1, 0.2, NAN, NAN])
    by_phrase = pads.dataset(pa.table({"interest": ["edge", "drill"], "probability": [0.7, 0.6]}))
    np.testing.assert_array_equal(votes_of(_interests(), by_phrase, ["interest"], "interest"), [0.6, 0.6, NAN, 0.7])


def test_agreement_in_one_pass_equals_that_over_all_rows_at_once():
    rng = np.random.default_rng(0)
    left = rng.random(300)
    right = np.clip(left + rng.normal(size=300) * 0.3, 0, 1)
    right[::7] = NAN
    table = pa.table({"judge_probability": pa.array(left), "classifier_probability": pa.array(right, mask=np.isnan(right))})
    facts = labeler_facts(table.to_batches(max_chunksize=64), ["judge", "classifier"], 0.5)
    both = ~np.isnan(right)
    found = facts["agreement"]["judge and classifier"]
    assert found["num_interests"] == both.sum()
    assert found["kappa"] == pytest.approx(cohen_kappa_score(left[both] >= 0.5, right[both] >= 0.5))
    assert found["correlation"] == pytest.approx(np.corrcoef(left[both], right[both])[0, 1])
    assert facts["labelers"]["classifier"]["num_interests"] == both.sum()
    assert facts["labelers"]["judge"]["trusted_rate"] == pytest.approx((left >= 0.5).mean())


def test_agreement_with_a_labeler_that_always_says_the_same_is_left_open():
    table = pa.table({"judge_probability": [1.0, 1.0], "classifier_probability": [0.2, 0.9]})
    found = labeler_facts(table.to_batches(), ["judge", "classifier"], 0.5)["agreement"]["judge and classifier"]
    assert found["kappa"] == 0
    assert found["correlation"] is None


def test_a_user_is_labelled_against_what_it_was_mined_from_newest_first_and_never_later_items(tmp_path):
    store = Store(str(tmp_path))
    titles = {"a": "rod", "b": "reel", "c": "lamp"}
    history = {
        "example_id": ["1", "2", "3"],
        "user_id": ["u"] * 3,
        "split": ["train", "train", "test"],
        "history": pa.array([["a"], ["a", "b"], ["a", "b", "c"]], pa.list_(pa.string())),
        "target": ["b", "c", "a"],
    }
    tables = {"items": pa.table({"item_id": list(titles), "title": list(titles.values())}), "histories": pa.table(history)}
    for name, table in tables.items():
        artifacts.write_table(store, name, table)
        artifacts.commit(store, Manifest(name=name, rows=len(table)))
    owners = pa.table({"owner": ["user", "item", "user"], "owner_id": ["u", "c", "u"]})
    assert owner_texts(store, owners) == ["reel\nrod", "lamp", "reel\nrod"]
    with pytest.raises(ValueError, match="no text of item x; an input changed: mine again with --force"):
        owner_texts(store, pa.table({"owner": ["item"], "owner_id": ["x"]}))


def test_quality_is_the_confidence_weighted_share_of_positive_interests():
    quality, num_interests = item_quality(np.array([0, 0, 2, 3]), np.array([1, 0, 1, 1]), np.array([0.6, 0.2, 1.0, 0.0]), 4)
    np.testing.assert_allclose(quality, [0.75, 0, 1, 0])
    assert num_interests.tolist() == [2, 0, 1, 1]


def test_the_distribution_of_quality_counts_only_items_with_interests():
    table = pa.table({"quality": [0.0, 0.0, 0.55, 1.0], "num_interests": [0, 2, 1, 3]})
    assert quality_histogram(table.to_batches(max_chunksize=3)) == {
        "num_without_interests": 1,
        "mean_quality": pytest.approx(1.55 / 3),
        "quality_counts": [1, 0, 0, 0, 0, 1, 0, 0, 0, 1],
    }
