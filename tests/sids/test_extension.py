"""A catalogue may grow and shrink; no existing SID changes and none is given twice."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.sids.assignment import assign_sids, sid_table
from digr.sids.extension import continue_sids, extend_sids
from tests.sids.grid import GRID, POINTS, grid_vectors


def _assign(vectors, **options):
    return assign_sids(GRID, lambda: iter([vectors]), **options)


def _continue(earlier, ids, vectors, **options):
    return continue_sids(GRID, earlier, pa.array(ids, pa.string()), lambda: iter(np.array_split(vectors, 2)), **options)


@settings(deadline=None)
@given(POINTS, POINTS, st.booleans(), st.sampled_from(["colliding", "all", "none"]))
def test_new_items_get_new_codes_and_no_sid_begins_another(old, new, spread, disambiguation):
    before = _assign(grid_vectors(old), spread=spread, disambiguation=disambiguation).codes
    try:
        after = extend_sids(GRID, before, grid_vectors(new), disambiguation=disambiguation).codes
    except ValueError as error:
        assert "has outgrown the codebooks" in str(error) and disambiguation == "colliding"
        return
    rows = [tuple(code for code in row if code >= 0) for row in [*before.tolist(), *after.tolist()]]
    assert len(after) == len(new)
    if disambiguation != "none":
        assert len(set(rows)) == len(rows)
        assert not any(row[:2] in set(rows) for row in rows if len(row) == 3)


def test_a_new_item_takes_a_free_code_then_the_next_suffix_code():
    before = _assign(np.array([[-10, 0]] * 4 + [[10, 0]], np.float32)).codes
    after = extend_sids(GRID, before, np.array([[-10, 0.2], [10, 0.2]], np.float32))
    assert after.codes.tolist() == [[0, 1, 2], [1, 2, -1]]
    assert after.level_sizes == (2, 3, 3)


def test_a_new_item_without_room_is_an_error():
    before = _assign(np.array([[-10, -1], [-10, 0], [-10, 1]], np.float32)).codes
    with pytest.raises(ValueError, match=r"1 new items find neither a free code.*raise sids\.level_sizes"):
        extend_sids(GRID, before, np.array([[-10, 0]], np.float32))


def test_known_items_keep_their_sids_new_ones_get_others_and_removed_ones_are_retired():
    vectors = np.array([[-10, 0]] * 4 + [[10, 0]], np.float32)
    before = _assign(vectors)
    earlier = sid_table(pa.array(list("abcde")), before.codes)
    # a and e stay, b to d are gone, f and g are new
    after = _continue(earlier, ["f", "e", "a", "g"], np.array([[-10, 0.2], [10, 0], [-10, 0], [10, 0]], np.float32))
    kept = dict(zip("abcde", before.codes.tolist(), strict=True))
    assert after.num_new == 2 and after.retired["item_id"].to_pylist() == ["b", "c", "d"]
    assert after.assigned.codes[1].tolist() == kept["e"] and after.assigned.codes[2].tolist() == kept["a"]
    fresh = [tuple(row) for row in after.assigned.codes[[0, 3]].tolist()]
    assert not set(fresh) & {tuple(row) for row in kept.values()}, "a retired SID was given to somebody else"
    assert after.assigned.level_sizes == (2, 3, 3)


def test_an_item_that_comes_back_has_its_own_sid_again():
    vectors = np.array([[-10, -1], [-10, 0], [10, 1]], np.float32)
    before = sid_table(pa.array(["a", "b", "c"]), _assign(vectors).codes)
    without = _continue(before, ["a", "c"], vectors[[0, 2]])
    ever = pa.concat_tables([sid_table(pa.array(["a", "c"]), without.assigned.codes), without.retired])
    again = _continue(ever, ["a", "b", "c"], vectors)
    assert again.assigned.codes.tolist() == _assign(vectors).codes.tolist() and again.num_new == 0 and len(again.retired) == 0


@settings(deadline=None, max_examples=30)
@given(POINTS, POINTS, st.randoms(), st.sampled_from(["colliding", "all"]))
def test_whatever_comes_and_goes_sids_stay_and_stay_unique(old, new, random, disambiguation):
    vectors = grid_vectors([*old, *new])
    ids = [f"i{index}" for index in range(len(vectors))]
    before = _assign(vectors[: len(old)], disambiguation=disambiguation)
    earlier = sid_table(pa.array(ids[: len(old)]), before.codes)
    chosen = sorted(random.sample(range(len(vectors)), random.randint(1, len(vectors))))
    try:
        after = _continue(earlier, [ids[i] for i in chosen], vectors[chosen], disambiguation=disambiguation)
    except ValueError as error:
        assert "has outgrown the codebooks" in str(error) and disambiguation == "colliding"
        return
    now = sid_table(pa.array([ids[i] for i in chosen]), after.assigned.codes).to_pylist()
    known = {row["item_id"]: row["codes"] for row in earlier.to_pylist()}
    assert all(row["codes"] == known[row["item_id"]] for row in now if row["item_id"] in known)
    ever = [tuple(row["codes"]) for row in [*now, *after.retired.to_pylist()]]
    assert len(set(ever)) == len(ever)
