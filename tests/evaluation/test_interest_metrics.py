"""Measures of served interests against hand-computed values and a loop over lists."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digr.data.ids import build_id_index
from digr.evaluation.interest_metrics import carried_interests, has_interest, interest_values
from digr.evaluation.metrics import Examples, evaluate_split

NUM_ITEMS = 7
KS = (1, 3, 5)


def _carried(interests: list[list[int]]):
    """Item `i0` has the first interests, and so on."""
    ids = build_id_index(pa.array([f"i{number}" for number in range(len(interests))]))
    pairs = np.array([(item, group) for item, groups in enumerate(interests) for group in groups], np.int64).reshape(-1, 2)
    return carried_interests(ids, pairs[:, 0], pairs[:, 1])


def _values(interests, lists: list[list[str]], targets: list[str], ks=KS) -> list[list[float]]:
    found = interest_values(pa.array(lists, pa.list_(pa.string())), pa.array(targets, pa.string()), interests, ks)
    return found.tolist()


def test_a_list_that_serves_the_interest_by_another_item_counts():
    fishing, baking = 0, 1
    carried = _carried([[fishing], [fishing, baking], [baking], []])
    (found,) = _values(carried, [["i2", "i1", "i3"]], ["i0"], ks=(1, 3))
    ndcg = (1 / math.log2(3)) / (1 + 1 / math.log2(3))  # i0 and i1 carry fishing, so the ideal list has two
    assert found == pytest.approx([0, 1, 0, ndcg, 1, 2 / 3])  # baking, then fishing and baking: 2 of 3 differ


def _expected(interests: list[list[int]], items: list[int], target: int) -> list[float]:
    wanted = set(interests[target])
    carriers = sum(bool(wanted & set(groups)) for groups in interests)
    hr, ndcg, diversity = [], [], []
    for k in KS:
        gains = [bool(wanted & set(interests[item])) for item in items[:k]]
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, carriers)))
        shown = [group for item in items[:k] for group in set(interests[item])]
        hr.append(float(any(gains)))
        ndcg.append(sum(gain / math.log2(place + 2) for place, gain in enumerate(gains)) / ideal if wanted else 0.0)
        diversity.append(len(set(shown)) / len(shown) if shown and wanted else 0.0)
    return hr + ndcg + diversity


ITEM = st.integers(0, NUM_ITEMS - 1)


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
    st.lists(st.tuples(st.lists(ITEM, max_size=6, unique=True), ITEM), min_size=1, max_size=5),
)
def test_the_measures_equal_those_of_a_loop(interests, pairs):
    lists, targets = [[f"i{item}" for item in items] for items, _ in pairs], [f"i{target}" for _, target in pairs]
    carried = _carried(interests)
    found = _values(carried, lists, targets)
    assert found == [pytest.approx(_expected(interests, items, target), abs=1e-6) for items, target in pairs]
    assert has_interest(pa.array(targets), carried).tolist() == [bool(interests[target]) for _, target in pairs]


def test_items_that_do_not_exist_serve_nothing():
    assert _values(_carried([[0]]), [["ghost", "i0"]], ["i0"], ks=(1, 2)) == [pytest.approx([0, 1, 0, 1 / math.log2(3), 0, 1])]


def test_only_examples_whose_target_has_an_interest_are_measured():
    ids, targets = pa.array(["e0", "e1", "e2"]), pa.array(["i0", "i3", "i2"])
    examples = Examples(
        build_id_index(ids), np.arange(3), targets, {"all": np.ones(3, bool), "cold": np.array([True, True, False])}
    )
    lists = {"one": [["i1"], ["i3"], ["i0"]], "other": [["i0"], ["i3"], ["i2"]]}
    systems = {
        name: lambda found=found: [pa.record_batch({"example_id": ids, "item_ids": pa.array(found)})]
        for name, found in lists.items()
    }
    carried = _carried([[0], [0], [1], []])
    rows, gains = evaluate_split(
        systems, examples, carried.items, "test", ks=[1], resamples=50, rng=np.random.default_rng(0), interests=carried
    )
    found = {(row["system"], row["slice"], row["name"]): (row["value"], row["num_examples"]) for row in rows}
    assert found["one", "all", "interest_hr"] == (0.5, 2)
    assert found["one", "cold", "interest_ndcg"] == (1.0, 1)
    assert found["other", "all", "interest_hr"] == (1.0, 2)
    assert found["one", "all", "hr"] == (pytest.approx(1 / 3), 3)
    (gain,) = (row["difference"] for row in gains if row["name"] == "interest_hr")
    assert gain == 0.5
    without = evaluate_split(systems, examples, carried.items, "test", ks=[1], resamples=50, rng=np.random.default_rng(0))
    assert str([row for row in rows if "interest" not in row["name"]]) == str(without[0])  # NaN is unequal to itself
