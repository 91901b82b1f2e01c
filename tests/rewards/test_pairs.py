"""Pairs: negatives are never the item's own interests, and held-out items never train."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.interests import ClassifierConfig
from digr.rewards import pairs as module
from digr.rewards.pairs import blur, build_pairs, id_numbers, pair_tables
from digr.tables import flat_interests
from tests.nested_interests import nest_rows

NUM_ITEMS, TOPICS = 72, ("garden care", "boat repair", "bread baking", "wood turning", "shoe polish", "circuit building")


def _catalogue() -> tuple[list[list[str]], np.ndarray]:
    """Items of six topics; each has an own interest, one of its topic and one shared by neighbours within the topic."""
    topic = np.arange(NUM_ITEMS) % len(TOPICS)
    interests = [[f"{TOPICS[t]} number {item}", TOPICS[t]] for item, t in enumerate(topic)]
    vectors = np.eye(len(TOPICS))[topic] + 0.05 * np.random.default_rng(0).normal(size=(NUM_ITEMS, len(TOPICS)))
    return interests, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _pairs(num_pairs: int = 120, seed: int = 0):
    interests, vectors = _catalogue()
    item_index = np.repeat(np.arange(NUM_ITEMS), 2)
    distinct, phrase_index = np.unique([phrase for own in interests for phrase in own], return_inverse=True)
    unlike = np.eye(len(distinct), dtype=np.float32)
    pairs = build_pairs(
        item_index, phrase_index, distinct.tolist(), vectors, unlike, num_pairs=num_pairs, rng=np.random.default_rng(seed)
    )
    return pairs, interests


def test_positives_are_mined_of_their_item_and_negatives_are_not():
    pairs, interests = _pairs()
    assert Counter(pairs.kinds) == {"mined": 60, "far_swap": 18, "near_swap": 24, "blurred": 18}
    for item, phrase, label, kind in zip(*pairs[:3], pairs.kinds, strict=True):
        assert label == (kind == "mined")
        assert (phrase in interests[item]) == (kind == "mined")


def test_near_swaps_come_from_a_similar_item_and_leave_out_what_the_neighbours_share():
    pairs, _ = _pairs()
    for item, phrase, kind in zip(pairs.item_index, pairs.phrases, pairs.kinds, strict=True):
        if kind == "near_swap":
            assert phrase.startswith(TOPICS[item % len(TOPICS)] + " number")


def test_a_near_duplicate_of_an_own_interest_is_no_negative():
    item_index, phrase_index = np.array([0, 1, 2]), np.array([0, 1, 2])
    phrases = ["lawn care", "lawn caring", "boat repair"]
    vectors = np.array([[1, 0], [0.9, np.sqrt(1 - 0.81)], [0, 1]], np.float32)
    drawn = [
        build_pairs(
            item_index, phrase_index, phrases, np.eye(3, dtype=np.float32), vectors, num_pairs=40, rng=np.random.default_rng(seed)
        )
        for seed in range(5)
    ]
    swapped = {
        (int(item), phrase)
        for pairs in drawn
        for item, phrase, kind in zip(pairs.item_index, pairs.phrases, pairs.kinds, strict=True)
        if kind.endswith("swap")
    }
    assert swapped == {(0, "boat repair"), (1, "boat repair"), (2, "lawn care"), (2, "lawn caring")}


def test_equal_seeds_give_equal_pairs_and_others_do_not():
    assert _pairs(seed=1)[0].phrases == _pairs(seed=1)[0].phrases
    assert _pairs(seed=1)[0].phrases != _pairs(seed=2)[0].phrases


def test_a_blurred_phrase_keeps_at_most_the_commonest_word():
    vocabulary = ["home repair of pumps", "home lighting", "home"]
    for phrase in blur(["home repair of pumps"] * 50, vocabulary, np.random.default_rng(0)):
        words = phrase.split()
        assert words[0] in module._GENERIC_HEADS
        assert words[-1] in module._GENERIC_TAILS
        assert words[1:-1] in ([], ["home"])


def test_id_numbers_are_uniform_and_belong_to_the_id():
    numbers = id_numbers([f"item {index}" for index in range(20000)], "held out")
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / 20000, 0.1, atol=0.01)
    assert id_numbers(["item 7"], "held out")[0] == numbers[7]
    assert id_numbers(["item 7"], "calibrate")[0] != numbers[7]


@pytest.fixture
def store(tmp_path) -> Store:
    """`items` and `interests` of the small catalogue."""
    store, (interests, _) = Store(str(tmp_path)), _catalogue()
    ids = [f"{item:03d}" for item in range(NUM_ITEMS)]
    artifacts.write_table(store, "items", pa.table({"item_id": ids, "title": [f"title {item}" for item in ids]}))
    rows = [{"owner_id": ids[item], "interest": phrase} for item, own in enumerate(interests) for phrase in own]
    rows.append({"owner": "user", "owner_id": "000", "interest": "of a user"})
    artifacts.write_table(store, "interests", nest_rows("interests", rows, ids, ["000"]))
    for name, count in (("items", NUM_ITEMS), ("interests", len(rows))):
        artifacts.commit(store, Manifest(name=name, rows=count))
    return store


def _encode(texts: list[str]) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(len(texts), 32)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_no_item_is_on_both_sides_nor_both_calibrates_and_measures(store):
    config = ClassifierConfig(max_pairs=200, valid_share=0.3)
    train, held_out = pair_tables(store, config, encode=_encode, rng=np.random.default_rng(0))
    trained, held = set(train["item_id"].to_pylist()), set(held_out["item_id"].to_pylist())
    assert trained
    assert held
    assert not trained & held
    fits = {item: set() for item in held}
    for item, side in zip(held_out["item_id"].to_pylist(), held_out["half"].to_pylist(), strict=True):
        fits[item].add(side)
    assert all(len(sides) == 1 for sides in fits.values())
    assert {0, 1} == {side for sides in fits.values() for side in sides}
    assert "of a user" not in train["phrase"].to_pylist() + held_out["phrase"].to_pylist()
    mined = {(row["owner_id"], row["interest"]) for row in flat_interests(artifacts.read_table(store, "interests")).to_pylist()}
    assert len(train) == 2 * len(trained)
    for row in train.to_pylist():
        assert (row["item_id"], row["phrase"]) in mined
        assert row["text"] == f"title {row['item_id']}"
    for row in held_out.filter(pc.equal(held_out["label"], 1)).to_pylist():
        assert (row["item_id"], row["phrase"]) in mined


def test_what_a_judge_of_another_run_rejected_is_no_positive(store, tmp_path):
    mined = [row for row in flat_interests(artifacts.read_table(store, "interests")).to_pylist() if row["owner"] == "item"]
    rows = [
        {"owner_id": row["owner_id"], "interest": row["interest"], "judge_probability": chance}
        for row, chance in zip(mined, [0.2, None, 0.9] * len(mined), strict=False)
    ]
    judged, config = Store(str(tmp_path / "judged")), ClassifierConfig(max_pairs=200, valid_share=0.3)
    ids = sorted({row["owner_id"] for row in rows})
    artifacts.write_table(judged, "interest_labels", nest_rows("interest_labels", rows, ids))
    artifacts.commit(judged, Manifest(name="interest_labels", rows=len(rows)))
    config = config.model_copy(update={"judged_run": judged.root})
    train, held_out = pair_tables(store, config, encode=_encode, rng=np.random.default_rng(0))
    right = held_out.filter(pc.equal(held_out["label"], 1))
    found = [(row["item_id"], row["phrase"]) for side in (train, right) for row in side.to_pylist()]
    rejected = {(row["owner_id"], row["interest"]) for row in rows if row["judge_probability"] == 0.2}
    assert not rejected & set(found)
    trained = {item for item, _ in found[: len(train)]}
    assert len(train) == sum(row["owner_id"] in trained and row["judge_probability"] != 0.2 for row in rows)
    artifacts.write_table(judged, "interest_labels", nest_rows("interest_labels", rows[1:2], [rows[1]["owner_id"]]))
    with pytest.raises(ValueError, match=r"classifier.judged_run: .*: found no judge_probability; choose a run"):
        pair_tables(store, config, encode=_encode, rng=np.random.default_rng(0))


def test_no_more_pairs_are_trained_on_than_the_config_says(store):
    config = ClassifierConfig(max_pairs=40, valid_share=0.4)
    assert len(pair_tables(store, config, encode=_encode, rng=np.random.default_rng(0)).train) <= 40


def test_the_number_of_items_read_is_bounded_by_the_number_of_pairs(store):
    train, held_out = pair_tables(
        store, ClassifierConfig(max_pairs=60, valid_share=0.4), encode=_encode, rng=np.random.default_rng(0)
    )
    assert len(set(train["item_id"].to_pylist() + held_out["item_id"].to_pylist())) < 45


def test_a_catalogue_with_too_few_interests_is_an_error_that_says_so(store):
    artifacts.begin(store, "interests")
    ids = artifacts.read_table(store, "items")["item_id"].to_pylist()
    artifacts.write_table(store, "interests", nest_rows("interests", [{"owner_id": "001", "interest": "x"}], ids))
    artifacts.commit(store, Manifest(name="interests", rows=1))
    with pytest.raises(ValueError, match=r"interests: 1 train items with interests, the classifier needs at least 2"):
        pair_tables(store, ClassifierConfig(), encode=_encode, rng=np.random.default_rng(0))
