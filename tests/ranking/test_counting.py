"""Pairs of training interactions, and the lists made of them."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from digr.data.transitions import TrainingSequences
from digr.ranking.counting import STEPS, count_pairs, counted_lists, merge_pairs, pairs_of_table, pairs_table
from digr.ranking.views import COUNTED

SEQUENCES = TrainingSequences(pa.array(["a", "b"]), np.array([0, 1, 2, 3, 1, 2]), np.array([0, 4, 6]))
"""User a: 0 1 2 3; user b: 1 2."""
NUM_ITEMS = 5


def brute_force(users, max_gap, decay, backward):
    weights = Counter[tuple[int, int]]()
    for items in users:
        for place, before in enumerate(items):
            for gap, after in enumerate(items[place + 1 : place + 1 + max_gap], 1):
                weights[before, after] += decay ** (gap - 1)
                weights[after, before] += backward * decay ** (gap - 1)
    return {pair: weight for pair, weight in weights.items() if weight}


@pytest.mark.parametrize(("column", "rule"), [(0, (3, 0.5, 0.3)), (1, (1, 1.0, 0.0)), (2, (8, 0.9, 1.0))])
def test_pairs_weigh_what_their_rule_says(column, rule):
    pairs = count_pairs(SEQUENCES, NUM_ITEMS)
    given = zip(pairs.before.tolist(), pairs.after.tolist(), pairs.weight[:, column].tolist(), strict=True)
    found = {(before, after): weight for before, after, weight in given if weight}
    assert found == pytest.approx(brute_force([[0, 1, 2, 3], [1, 2]], *rule))


def test_counting_users_apart_and_through_a_table_is_counting_them_together():
    whole = count_pairs(SEQUENCES, NUM_ITEMS)
    halves = [
        TrainingSequences(pa.array(["a"]), np.array([0, 1, 2, 3]), np.array([0, 4])),
        TrainingSequences(pa.array(["b"]), np.array([1, 2]), np.array([0, 2])),
    ]
    tables = [pairs_table(pairs, "all", pairs.before) for pairs in (count_pairs(half, NUM_ITEMS) for half in halves)]
    merged = merge_pairs([pairs_of_table(pa.concat_tables(tables))], NUM_ITEMS)
    assert merged.before.tolist() == whole.before.tolist()
    assert merged.after.tolist() == whole.after.tolist()
    assert merged.weight == pytest.approx(whole.weight)


def test_lists_are_scaled_rows_heaviest_first():
    pairs, frequency = count_pairs(SEQUENCES, NUM_ITEMS), np.array([1, 2, 2, 1, 0])
    found = counted_lists(pairs, 0, NUM_ITEMS, frequency, 10)
    assert set(found) == {*COUNTED, STEPS}
    first = {name: lists.item[lists.start[1] : lists.start[2]].tolist() for name, lists in found.items()}
    weights = {name: lists.weight[lists.start[1] : lists.start[2]].tolist() for name, lists in found.items()}
    # item 1 is followed by 2 twice, by 3 after a gap of 2 (.5), and 0 stands before it (.3)
    assert first["transitions"] == [2, 3, 0]
    assert weights[STEPS] == pytest.approx([2.0, 0.5, 0.3])
    assert weights["transitions"] == pytest.approx(np.array([2.0, 0.5, 0.3]) / np.sqrt(2.8))
    assert (first["next"], weights["next"]) == ([2], [1.0])
    # beside 2 twice, each of both twice; beside 0 once; beside 3 with a gap of 2
    assert first["cooccurrence"] == [2, 0, 3]
    assert weights["cooccurrence"] == pytest.approx([2 / 2, 1 / np.sqrt(2), 0.9 / np.sqrt(2)])


def test_lists_of_a_part_are_those_of_the_whole():
    pairs, frequency = count_pairs(SEQUENCES, NUM_ITEMS), np.array([1, 2, 2, 1, 0])
    whole = counted_lists(pairs, 0, NUM_ITEMS, frequency, 2)
    here = (pairs.before >= 2) & (pairs.before < 4)
    of_part = pairs._replace(before=pairs.before[here], after=pairs.after[here], weight=pairs.weight[here])
    part = counted_lists(of_part, 2, 4, frequency, 2)
    for name, lists in part.items():
        inside = slice(whole[name].start[2], whole[name].start[4])
        assert lists.item.tolist() == whole[name].item[inside].tolist()
        assert lists.weight.tolist() == whole[name].weight[inside].tolist()
