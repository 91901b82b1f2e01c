"""Labels keep the order of the interests, and quality is the confidence-weighted share of positives."""

import numpy as np
import pyarrow as pa

from digr.rewards.labeling import item_quality, label_interests
from digr.tables import conform


def _classify(interests, texts):
    scores = {True: 0.9, False: 0.2}
    pairs = zip(interests, texts, strict=True)
    return np.array([0.5 if interest == "edge" else scores[interest in text] for interest, text in pairs])


def test_each_interest_is_labelled_against_its_own_item_in_order_of_owner_and_rank():
    interests = pa.table(
        {
            "owner": ["item"] * 4,
            "owner_id": ["b", "a", "a", "a"],
            "rank": pa.array([0, 1, 0, 2], pa.int32()),
            "interest": ["drill", "drill", "garden", "edge"],
        }
    )
    labels = label_interests(interests, pa.array(["a", "b"]), ["garden hose", "drill bit"], classify=_classify, threshold=0.5)
    rows = conform("interest_labels", labels, "test").select(["owner_id", "rank", "interest", "probability", "label", "labeler"])
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        ("a", 0, "garden", 0.9, 1, "classifier"),
        ("a", 1, "drill", 0.2, 0, "classifier"),
        ("a", 2, "edge", 0.5, 1, "classifier"),
        ("b", 0, "drill", 0.9, 1, "classifier"),
    ]


def test_a_batch_without_interests_gives_an_empty_table_of_the_right_columns():
    empty = pa.schema([("owner", pa.string()), ("owner_id", pa.string()), ("rank", pa.int32()), ("interest", pa.string())])
    labels = label_interests(empty.empty_table(), pa.array(["a"]), ["x"], classify=_classify, threshold=0.5)
    assert len(conform("interest_labels", labels, "test")) == 0


def test_quality_is_the_confidence_weighted_share_of_positive_interests():
    quality, num_interests = item_quality(np.array([0, 0, 2, 3]), np.array([1, 0, 1, 1]), np.array([0.6, 0.2, 1.0, 0.0]), 4)
    np.testing.assert_allclose(quality, [0.75, 0, 1, 0])
    assert num_interests.tolist() == [2, 0, 1, 1]
