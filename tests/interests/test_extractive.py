"""Key phrases: how they are counted, which words form a phrase, and that planted ones are found."""

import json

import numpy as np
import pytest

from digr.config.models import EncoderConfig
from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop
from digr.data.texts import item_texts
from digr.interests.extractive import PhraseCounts, choose_diverse, count_phrases, extract_interests, num_buckets, phrase_unity
from digr.interests.parsing import parse_response
from digr.models.encoders import load_encoder

TEXTS = [
    "Rod. Made for weekend trout fishing, in green.",
    "Hat with a brim: weekend trout fishing starts early!",
    "Weekend trout fishing. Weekend trout fishing.",
    "Bread knife.",
]


def _one_word(texts):
    """Vectors that are equal for all texts, so that only unity ranks."""
    return np.ones((len(texts), 1))


def _phrases(texts, **limits):
    buckets = num_buckets(len(texts))
    counts = PhraseCounts(count_phrases(texts, 4, buckets), 20)
    limits = {"max_words": 4, "min_owners": 2, "max_interests": 3} | limits
    return [
        [phrase for phrase, _ in parse_response(answer).interests]
        for answer in extract_interests(texts, counts, _one_word, **limits)
    ]


def test_a_phrase_that_others_share_is_found_whole_and_its_fragments_are_not():
    found = _phrases(TEXTS)
    assert found[:3] == [["weekend trout fishing"]] * 3 and found[3] == []


def test_phrases_do_not_cross_sentences_start_with_a_stop_word_or_hold_digits():
    texts = ["Blue mug. Made for the lake 7 days", "Blue mug. Made for the lake 7 days"]
    assert _phrases(texts, max_interests=20) == [["blue mug"]] * 2


def test_single_words_are_taken_only_where_a_text_has_nothing_longer():
    assert _phrases(["Anvil!", "An anvil."]) == [["anvil"]] * 2


def test_counts_are_owners_not_mentions_and_parts_add_up():
    whole = count_phrases(TEXTS, 4, 1 << 16)
    assert (whole == count_phrases(TEXTS[:2], 4, 1 << 16) + count_phrases(TEXTS[2:], 4, 1 << 16)).all()
    # weekend, trout, fishing, their two pairs and the triple occur in three texts each, however often
    assert (whole == 3).sum() == 6 and whole.max() == 3


def test_unity_prefers_the_run_that_stands_alone():
    # positions: "made | weekend trout fishing", where the triple is in 9 texts and the four words in 1
    owners = np.array([[50, 9, 9, 9], [1, 9, 9, 0], [1, 9, 0, 0], [1, 0, 0, 0]], float)
    unity = phrase_unity(owners)
    assert np.unravel_index(unity.argmax(), unity.shape) == (2, 1)
    assert unity[2, 1] == pytest.approx((1 - 1 / 9) * (1 - 0.5**3))
    assert unity[1, 1] == 0 and unity[3, 0] == pytest.approx(1 / 9 * (1 - 0.5**4))


def test_a_repetition_is_chosen_after_something_new():
    phrases = np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    chosen = choose_diverse(phrases, np.array([1.0, 0.0]), np.array([1.0, 0.9, 0.9]), 3, diversity=0.5)
    assert [index for index, _ in chosen] == [0, 2, 1]
    assert chosen[1][1] == pytest.approx(0.75)


def test_no_text_gives_an_answer_without_interests():
    none = PhraseCounts(np.zeros(1 << 16, np.uint32), 2)
    answers = extract_interests(["", "  "], none, _one_word, max_words=3, min_owners=1, max_interests=3)
    assert [json.loads(answer)["interests"] for answer in answers] == [[], []]


def test_most_planted_interests_of_the_embedded_shop_are_among_the_top_five():
    shop = build_shop(SyntheticConfig(num_items=120, num_users=20, num_interests=12), 0)
    texts = item_texts(shop.items)
    counts = PhraseCounts(count_phrases(texts, 5, num_buckets(len(texts))), len(texts))
    answers = extract_interests(texts, counts, load_encoder(EncoderConfig()), max_words=5, min_owners=2, max_interests=5)
    found = {
        item: dict(parse_response(answer).interests)
        for item, answer in zip(shop.items["item_id"].to_pylist(), answers, strict=True)
    }
    hits = [row["interest"] in found[row["item_id"]] for row in shop.planted.to_pylist()]
    assert np.mean(hits) >= 0.7
