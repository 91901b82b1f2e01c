"""Labels keep the order of the interests and name who gave them; quality is the confidence-weighted share of positives."""

import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.interests.item_lines import read_item_lines
from digr.partitions import Part
from digr.rewards.labeling import (
    LabelerCounts,
    combined_probability,
    interest_quality,
    label_facts,
    label_interests,
    labelled_texts,
)
from digr.tables import flat_interests
from tests.nested_interests import nest_rows

NAN = math.nan


def _interests() -> pa.Table:
    named = [("a", "drill", 0.6), ("a", "garden", 0.2), ("a", "edge", None), ("b", "drill", 0.0)]
    rows = [dict(zip(("owner_id", "interest", "confidence"), row, strict=True)) for row in named]
    return nest_rows("interests", rows, ["a", "b", "c"])


def test_labels_keep_the_order_of_the_interests_and_say_which_labeler_gave_what():
    votes = {"classifier": np.array([0.2, 0.5, NAN, 0.9]), "judge": np.array([0.2, 0.9, NAN, NAN])}
    labels = label_interests(_interests(), votes, "any", threshold=0.5)
    columns = ["owner_id", "rank", "interest", "probability", "label", "labelers", "classifier_probability", "judge_probability"]
    assert [tuple(row.values()) for row in flat_interests(labels).select(columns).to_pylist()] == [
        ("a", 0, "drill", 0.2, 0, ["classifier", "judge"], 0.2, 0.2),
        ("a", 1, "garden", 0.9, 1, ["classifier", "judge"], 0.5, 0.9),
        ("a", 2, "edge", 0.0, 0, [], None, None),
        ("b", 0, "drill", 0.9, 1, ["classifier"], 0.9, None),
    ]
    assert flat_interests(labels)["behavioural_probability"].null_count == 4
    assert labels["owner_id"].to_pylist() == ["a", "b", "c"]
    # a missing confidence counts as 1; one of 0 says nothing
    np.testing.assert_allclose(labels["quality"].to_numpy(), [0.2 / 1.8, 0.0, 0.0])


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


def test_owners_without_interests_have_empty_lists():
    labels = label_interests(_interests().slice(2), {"classifier": np.zeros(0)}, "mean", threshold=0.5)
    assert labels.to_pylist() == [{"owner": "item", "owner_id": "c", "interests": [], "quality": 0.0}]
    assert len(label_interests(_interests().slice(0, 0), {"classifier": np.zeros(0)}, "mean", threshold=0.5)) == 0


def test_agreement_in_one_pass_equals_that_over_all_rows_at_once():
    rng = np.random.default_rng(0)
    left = rng.random(300)
    right = np.clip(left + rng.normal(size=300) * 0.3, 0, 1)
    right[::7] = NAN
    table = pa.table({"judge_probability": pa.array(left), "classifier_probability": pa.array(right, mask=np.isnan(right))})
    counts = LabelerCounts(["judge", "classifier"], 0.5)
    for batch in table.to_batches(max_chunksize=64):
        counts.add(batch)
    facts = counts.facts()
    both = ~np.isnan(right)
    found = facts["agreement"]["judge and classifier"]
    assert found["num_interests"] == both.sum()
    assert found["kappa"] == pytest.approx(cohen_kappa_score(left[both] >= 0.5, right[both] >= 0.5))
    assert found["correlation"] == pytest.approx(np.corrcoef(left[both], right[both])[0, 1])
    assert facts["labelers"]["classifier"]["num_interests"] == both.sum()
    assert facts["labelers"]["judge"]["trusted_rate"] == pytest.approx((left >= 0.5).mean())


def test_agreement_with_a_labeler_that_always_says_the_same_is_left_open():
    table = pa.table({"judge_probability": [1.0, 1.0], "classifier_probability": [0.2, 0.9]})
    counts = LabelerCounts(["judge", "classifier"], 0.5)
    counts.add(table)
    found = counts.facts()["agreement"]["judge and classifier"]
    assert found["kappa"] == 0
    assert found["correlation"] is None


def test_a_user_is_labelled_against_what_it_was_mined_from_newest_first_and_never_later_items(tmp_path):
    store = Store(str(tmp_path))
    titles = {"a": "rod", "b": "reel", "c": "lamp"}
    history = {
        "example_id": ["1", "2", "3", "4"],
        "user_id": ["u", "u", "u", "v"],
        "split": ["train", "train", "test", "test"],
        "history": pa.array([["a"], ["a", "b"], ["a", "b", "c"], ["c"]], pa.list_(pa.string())),
        "target": ["b", "c", "a", "a"],
    }
    rows = [{"owner": "user", "owner_id": "u", "interest": "fishing"}, {"owner_id": "c", "interest": "light"}]
    interests = nest_rows("interests", rows, list(titles), ["u", "v"])
    captions = pa.array([None, "it shines", None, None, None], pa.string())
    tables = {
        "items": pa.table({"item_id": list(titles), "title": list(titles.values())}),
        "histories": pa.table(history),
        "interests": interests.set_column(interests.column_names.index("caption"), "caption", captions),
    }
    for name, table in tables.items():
        artifacts.write_table(store, name, table)
        artifacts.commit(store, Manifest(name=name, rows=len(table)))
    lines = read_item_lines(store, 1200, with_interests=False)
    found = [texts for _, texts in labelled_texts(store, Part("user", 0), lines, 1)]
    assert found == [["reel\nrod"], [""]]
    assert [texts for _, texts in labelled_texts(store, Part("item", 0), None, 10)] == [["rod", "reel. Image: it shines", "lamp"]]
    artifacts.write_table(store, "items", tables["items"].slice(1))
    with pytest.raises(ValueError, match=r"items/part-00000\.parquet: not the same owners as in .*interests/item/part-00000"):
        list(labelled_texts(store, Part("item", 0), None, 10))


def test_quality_is_the_confidence_weighted_share_of_positive_interests():
    quality = interest_quality(np.array([0, 0, 2, 3]), np.array([1, 0, 1, 1]), np.array([0.6, 0.2, 1.0, 0.0]), 4)
    np.testing.assert_allclose(quality, [0.75, 0, 1, 0])


def test_the_facts_of_labels_count_users_apart_and_rate_only_items_with_interests():
    rows = [{"owner_id": item, "interest": "x", "label": label} for item, label in (("b", 0), ("c", 1), ("c", 0), ("d", 1))]
    rows.append({"owner": "user", "owner_id": "u", "interest": "y", "classifier_probability": 0.7})
    table = nest_rows("interest_labels", rows, ["a", "b", "c", "d"], ["u"], [0.0, 0.0, 0.55, 1.0, 0.5])
    facts = label_facts(table.to_batches(max_chunksize=3), ["classifier"], 0.5)
    assert facts == {
        "num_interests": 5,
        "num_interests_of_users": 1,
        "trusted_rate": 0.6,
        "num_without_interests": 1,
        "mean_quality": pytest.approx(1.55 / 3),
        "quality_counts": [1, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        "labelers": {"classifier": {"num_interests": 1, "trusted_rate": 1.0}},
        "agreement": {},
    }
