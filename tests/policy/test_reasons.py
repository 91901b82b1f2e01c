"""Reasons are the trusted interests that an item and the history share."""

import pyarrow as pa

from digr.policy.reasons import index_interests, shared_interests
from digr.tables import flat_interests
from tests.nested_interests import nest_rows

IDS = pa.array(["b", "a", "c", "d"])


def _labels(*rows: tuple[str, str, float, int]) -> pa.Table:
    names = ("owner_id", "interest", "probability", "label")
    given = [dict(zip(names, row, strict=True)) | {"owner": "user" if row[0].startswith("user") else "item"} for row in rows]
    return flat_interests(nest_rows("interest_labels", given, ["a", "b", "c", "ghost"], ["user1"]))


INDEX = index_interests(
    _labels(
        ("a", "cold camping", 0.6, 1),
        ("a", "light packs", 0.9, 1),
        ("a", "gifts", 0.2, 0),
        ("b", "Light packs ", 0.7, 1),
        ("b", "cold camping", 0.8, 1),
        ("b", "light packs", 0.5, 1),
        ("b", "gifts", 0.9, 1),
        ("c", "night photos", 0.9, 1),
        ("ghost", "light packs", 0.9, 1),
        ("user1", "night photos", 0.9, 1),
    ),
    IDS,
)


def test_reasons_are_shared_trusted_interests_strongest_first():
    assert shared_interests(INDEX, [1], [0, 2, 3]) == [["cold camping", "Light packs "], [], []]


def test_an_untrusted_interest_is_no_reason():
    # "gifts" is trusted for b but not for a
    assert "gifts" not in shared_interests(INDEX, [0], [1])[0]


def test_the_users_own_interests_count_as_the_histories_do():
    """An item that had just what its user was mined for came without a reason, if no item of the history had it."""
    assert shared_interests(INDEX, [], [0, 2], "Night photos; light packs") == [["Light packs "], ["night photos"]]
    assert shared_interests(INDEX, [1], [0, 2], "unheard of") == shared_interests(INDEX, [1], [0, 2])


def test_any_item_of_the_history_counts_and_an_empty_history_gives_none():
    assert shared_interests(INDEX, [3, 2, 1], [2]) == [["night photos"]]
    assert shared_interests(INDEX, [], [0, 1]) == [[], []]
