"""The behavioural labeler counts what follows what in the training rows, and knows how little a few counts say."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop
from digr.rewards.behavioural import behavioural_table, lift_probability, transition_counts
from tests.data.prepared import build_histories
from tests.nested_interests import nest_rows


def _commit(store: Store, tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        artifacts.write_table(store, name, table)
        artifacts.commit(store, Manifest(name=name, rows=len(table)))


def test_counts_equal_a_brute_force_loop():
    rng = np.random.default_rng(0)
    owns = (rng.random((9, 5)) < 0.4).astype(float)
    before, after = rng.integers(0, 9, 60), rng.integers(0, 9, 60)
    observed, expected = transition_counts(csr_matrix(owns), [(before[:20], after[:20]), (before[20:], after[20:])])
    moves = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    left, entered = np.bincount([a for a, _ in moves], minlength=9), np.bincount([b for _, b in moves], minlength=9)
    for phrase in range(5):
        have = owns[:, phrase] > 0
        assert observed[phrase] == sum(have[a] and have[b] for a, b in moves)
        chance = sum(left[a] * entered[b] for a in range(9) for b in range(9) if a != b and have[a] and have[b])
        assert expected[phrase] == pytest.approx(chance / len(moves))


def test_many_transitions_are_sure_and_few_are_not():
    observed, expected = np.array([500.0, 100.0, 2.0, 0.0]), np.array([100.0, 100.0, 0.4, 5.0])
    lift, low, probability = lift_probability(observed, expected, min_lift=2.0)
    assert lift[0] == pytest.approx(501 / 101)
    assert (low < lift).all()
    assert probability[0] > 0.999
    assert probability[1] < 0.001
    assert 0.3 < probability[2] < 0.7
    assert probability[3] < 0.01
    drawn = np.random.default_rng(0).gamma(3.0, 1 / 1.4, 200_000)
    assert probability[2] == pytest.approx((drawn > 2).mean(), abs=0.005)
    assert low[2] == pytest.approx(np.quantile(drawn, 0.05), abs=0.02)


def test_an_interest_whose_items_follow_each_other_is_trusted_and_held_out_rows_say_nothing(tmp_path):
    store, ids = Store(str(tmp_path)), ["a", "b", "c", "d"]
    follow = [("a", "b"), ("c", "d")] * 15
    rows = [{"split": "train", "history": ["x0", before][-1:], "target": after} for before, after in follow]
    rows += [{"split": "train", "history": [], "target": "a"}]
    rows += [{"split": "test", "history": ["c"], "target": "a"}] * 50
    histories = [row | {"example_id": str(place), "user_id": f"u{place}"} for place, row in enumerate(rows)]
    owned = {"a": ["together", "apart"], "b": ["together"], "c": ["apart", "alone"], "d": []}
    interests = [{"owner_id": item, "interest": phrase} for item, phrases in owned.items() for phrase in phrases]
    tables = {
        "items": pa.table({"item_id": ids, "title": ids}),
        "interests": nest_rows("interests", interests, ids),
        "histories": pa.Table.from_pylist(histories),
    }
    _commit(store, tables)
    found = {row["interest"]: row for row in behavioural_table(store, min_lift=1.0).to_pylist()}
    assert (found["together"]["observed"], found["together"]["expected"]) == (15, 7.5)
    assert found["together"]["probability"] > 0.9
    assert found["alone"]["probability"] is None
    assert found["apart"]["observed"] == 0


def test_planted_interests_in_many_wordings_are_trusted_on_the_embedded_shop(tmp_path):
    """Only each row's last step was counted, a fifth of all: 37 % of these phrases were trusted."""
    shop, rng, store = build_shop(SyntheticConfig(), seed=0), np.random.default_rng(0), Store(str(tmp_path))
    item_ids = shop.items["item_id"].to_pylist()
    # as language models write: each interest in eight wordings, so that few items share one
    true = [(row["item_id"], f"{row['interest']} {rng.integers(8)}") for row in shop.planted.to_pylist()]
    false = [(str(rng.choice(item_ids)), f"anything {rng.integers(8 * 24)}") for _ in true]
    interests = nest_rows("interests", [{"owner_id": item, "interest": phrase} for item, phrase in true + false], item_ids)
    histories = build_histories(shop.interactions, "leave_one_out", 10).table
    _commit(store, {"items": shop.items, "interests": interests, "histories": histories})
    table = behavioural_table(store, min_lift=2.0).to_pydict()
    trusted = {phrase for phrase, p in zip(table["interest"], table["probability"], strict=True) if p is not None and p >= 0.5}
    true_rate, false_rate = (np.mean([phrase in trusted for _, phrase in pairs]) for pairs in (true, false))
    assert true_rate > 0.6 and false_rate < 0.1
