"""The id index finds what a dictionary finds."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digr.data.ids import build_id_index

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6)


@given(st.lists(NAMES, unique=True, max_size=12), st.lists(NAMES, max_size=12))
def test_places_equal_those_of_a_dictionary(ids, wanted):
    index = build_id_index(pa.array(ids, pa.string()))
    places = {name: place for place, name in enumerate(ids)}
    asked = wanted + ids[::-1]
    assert index.find(asked).tolist() == [places.get(name, -1) for name in asked]
    assert index.find(pa.array(asked, pa.string()).slice(1)).tolist() == [places.get(name, -1) for name in asked[1:]]


def test_a_longer_id_an_empty_one_and_a_missing_one_are_unknown():
    index = build_id_index(pa.array(["b", "a"]))
    assert index.find(pa.array(["ab", "", None, "a", "b"])).tolist() == [-1, -1, -1, 1, 0]
    assert len(index) == 2


def test_an_unknown_id_is_named():
    with pytest.raises(ValueError, match="histories: 'x' is not among the 2 known ids"):
        build_id_index(pa.array(["b", "a"])).find_all(["a", "x"], "histories")


@pytest.mark.parametrize("bad", ["", "a\0"])
def test_ids_that_padding_would_hide_are_refused(bad):
    with pytest.raises(ValueError, match="an id is empty or ends in a zero byte"):
        build_id_index(pa.array(["b", bad]))
