"""The shop depends on its seed alone, its texts show the interests, and interests, not categories, drive purchases."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from digr.config.run import SyntheticConfig
from digr.data.shop_words import INTERESTS
from digr.data.synthetic import build_shop, draw_images, with_images
from digr.tables import check_table
from tests.data.prepared import build_histories


@pytest.fixture(scope="module")
def shop():
    return build_shop(SyntheticConfig(), seed=0)


def _main_interest(shop):
    return {
        item: INTERESTS[interest][0] for item, (interest, _) in zip(shop.items["item_id"].to_pylist(), shop.looks, strict=True)
    }


def _category(shop):
    return {row["item_id"]: row["categories"][-1] for row in shop.items.to_pylist()}


def _hit_rate_at_10(shop, label_of):
    """Rank by how often a label follows the label of the last item in training, times popularity within the label."""
    rows = build_histories(shop.interactions, "leave_one_out", 50).table.to_pylist()
    ids = shop.items["item_id"].to_pylist()
    index = {item: at for at, item in enumerate(ids)}
    labels, label = np.unique([label_of[item] for item in ids], return_inverse=True)
    follows, popularity = np.full((len(labels), len(labels)), 0.05), np.full(len(ids), 0.5)
    for row in rows:
        if row["split"] == "train":
            walk = [index[item] for item in [*row["history"], row["target"]]]
            np.add.at(follows, (label[walk[:-1]], label[walk[1:]]), 1)
            np.add.at(popularity, walk, 1)
    size = np.bincount(label, popularity)
    scores = (follows / follows.sum(1, keepdims=True))[:, label] * (popularity / size[label])
    test = [(label[index[row["history"][-1]]], index[row["target"]]) for row in rows if row["split"] == "test"]
    top = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean([target in top[last] for last, target in test]))


def test_tables_hold_to_the_schemas_and_the_sizes_asked_for(shop):
    items = check_table("items", shop.items, "shop")
    interactions = check_table("interactions", shop.interactions, "shop")
    assert len(items) == 600 and pc.count_distinct(interactions["user_id"]).as_py() == 2_000
    assert pc.unique(items["currency"]).to_pylist() == ["USD"]
    assert items["item_id"].to_pylist() == sorted(items["item_id"].to_pylist())
    assert set(interactions["item_id"].to_pylist()) <= set(items["item_id"].to_pylist())
    lengths = np.array(interactions.group_by("user_id").aggregate([([], "count_all")])["count_all"])
    assert lengths.min() == 6 and lengths.max() == 14


def test_the_same_seed_gives_the_same_shop_and_another_seed_another(shop):
    again, other = build_shop(SyntheticConfig(), seed=0), build_shop(SyntheticConfig(), seed=1)
    assert again.items.equals(shop.items) and again.interactions.equals(shop.interactions)
    assert again.planted.equals(shop.planted)
    assert not other.items.equals(shop.items) and not other.interactions.equals(shop.interactions)


def test_times_rise_strictly_along_a_users_positions(shop):
    table = shop.interactions.sort_by([("user_id", "ascending"), ("position", "ascending")])
    user = np.unique(table["user_id"].to_pylist(), return_inverse=True)[1]
    time = table["timestamp"].cast(pa.int64()).to_numpy()
    assert (np.diff(time)[np.diff(user) == 0] > 0).all()


def test_most_texts_name_their_interest_word_for_word_and_all_carry_evidence(shop):
    main, words = _main_interest(shop), dict(INTERESTS)
    named, evident = 0, 0
    for row in shop.items.to_pylist():
        text, phrase = row["description"].lower(), main[row["item_id"]]
        named += phrase in text
        evident += phrase in text or any(related.lower() in text for related in words[phrase])
    assert 0.75 < named / 600 < 0.85
    assert evident == 600


def test_no_item_id_brand_or_category_tells_the_interest(shop):
    main = _main_interest(shop)
    interest = np.array([sorted(set(main.values())).index(main[item]) for item in shop.items["item_id"].to_pylist()])
    for values in (shop.items["brand"].to_pylist(), list(_category(shop).values()), [i[2] for i in main]):
        groups = np.unique(values, return_inverse=True)[1]
        # guessing each group's commonest interest, less what the same guess gains on shuffled interests
        gain = _purity(groups, interest) - _purity(groups, np.random.default_rng(0).permutation(interest))
        assert abs(gain) < 0.03


def _purity(groups, labels):
    return sum(np.bincount(labels[groups == group]).max() for group in np.unique(groups)) / len(labels)


def test_the_interest_of_the_last_item_predicts_the_next_and_its_category_does_not(shop):
    anything = dict.fromkeys(shop.items["item_id"].to_pylist(), "")
    popularity = _hit_rate_at_10(shop, anything)
    assert 10 / 600 < popularity < 0.1
    assert _hit_rate_at_10(shop, _main_interest(shop)) > popularity + 0.2
    assert abs(_hit_rate_at_10(shop, _category(shop)) - popularity) < 0.03


def test_many_items_are_rare(shop):
    counts = np.array(shop.interactions.group_by("item_id").aggregate([([], "count_all")])["count_all"])
    assert np.median(counts) < 25 < 100 < counts.max()


def test_images_of_one_interest_share_a_motif_and_others_do_not(shop, tmp_path):
    small = build_shop(SyntheticConfig(num_items=48, num_users=20), seed=0)
    draw_images(small, 32, tmp_path)
    items = with_images(small.items, str(tmp_path))
    drawn = {}
    for uri, (interest, colour) in zip(items["image_uri"].to_pylist(), small.looks.tolist(), strict=True):
        image = Image.open(uri)
        assert image.size == (32, 32)
        drawn.setdefault((interest, colour), set()).add(image.tobytes())
    assert len(drawn) > 40
    assert all(len(pictures) == 1 for pictures in drawn.values())
    assert len(set().union(*drawn.values())) == len(drawn)


def test_more_interests_than_words_are_refused():
    with pytest.raises(ValueError, match=r"data\.synthetic\.num_interests: found 25, expected at most 24"):
        build_shop(SyntheticConfig(num_interests=25), seed=0)


def test_too_few_items_for_the_interests_are_refused():
    with pytest.raises(ValueError, match=r"data\.synthetic\.num_items: found 20 for 24 interests, expected at least 48"):
        build_shop(SyntheticConfig(num_items=20), seed=0)


def test_the_smallest_shop_is_a_shop():
    tiny = build_shop(SyntheticConfig(num_items=20, num_users=20, num_interests=2), seed=3)
    assert build_histories(tiny.interactions, "leave_one_out", 20).facts["split_rows"] == {"train": 20, "valid": 20, "test": 20}
