"""Packed filters say of every item and every range what a boolean per item says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.sids.filters import allow_and_deny, count_bits, item_filter, pack_items, pack_mask, pack_ranges

sizes = st.sampled_from([1, 2, 63, 64, 65, 127, 128, 200])


def _mask(num_items: int, seed: int) -> np.ndarray:
    """Three requests, from few to many items, at least one each."""
    rng = np.random.default_rng(seed)
    mask = rng.random((3, num_items)) < np.array([[0.02], [0.5], [1.0]])
    mask[:, rng.integers(num_items)] = True
    return mask


@given(sizes, st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_counts_and_single_items_equal_the_boolean_form(num_items, seed):
    mask = _mask(num_items, seed)
    found = item_filter(pack_mask(torch.from_numpy(mask)), num_items)
    row = torch.arange(3)[:, None].expand(-1, num_items + 1)
    place = torch.arange(num_items + 1).expand(3, -1)
    assert found.num_before(row, place).tolist() == np.pad(mask.cumsum(1), ((0, 0), (1, 0))).tolist()
    assert found.allows(row[:, 1:], place[:, :-1]).tolist() == mask.tolist()


@given(sizes, st.integers(0, 10_000), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_ranges_set_the_bits_that_a_loop_sets(num_items, seed, num_ranges):
    rng = np.random.default_rng(seed)
    row, (start, end) = rng.integers(3, size=num_ranges), rng.integers(num_items + 1, size=(2, num_ranges))
    mask = np.zeros((3, num_items), bool)
    for one, first, last in zip(row, start, end, strict=True):
        mask[one, first:last] = True
    assert torch.equal(pack_ranges(row, start, end, 3, num_items), pack_mask(torch.from_numpy(mask)))


def test_items_in_any_order_and_twice_set_their_bits():
    row, place = np.array([1, 0, 1, 1]), np.array([64, 3, 0, 64])
    mask = torch.zeros(2, 70, dtype=torch.bool)
    mask[row, place] = True
    assert torch.equal(pack_items(row, place, 2, 70), pack_mask(mask))


def test_bits_are_counted_in_every_position_and_the_sign_too():
    words = torch.tensor([0, 1, -1, 1 << 62, -(1 << 63), 0x0F0F0F0F])
    assert count_bits(words).tolist() == [0, 1, 64, 1, 1, 16]
    assert count_bits(1 << torch.arange(64)).tolist() == [1] * 64


def test_conditions_join_by_bits_and_bits_behind_the_last_item_mean_nothing():
    some, other = (pack_items(np.zeros(2, int), np.array(places), 1, 70) for places in ([1, 69], [1, 5]))
    found = item_filter(some & ~other, 70)
    assert found.num_before(torch.tensor(0), torch.tensor(70)).item() == 1
    everything = item_filter(~(some & ~some), 70)
    assert everything.before[0, -1].item() == 70


def test_a_request_allows_all_or_some_items_and_denies_others():
    found = allow_and_deny([None, np.array([2, 5, 7])], [np.array([0, 1]), np.array([5])], 70)
    row, place = torch.arange(2)[:, None].expand(-1, 70), torch.arange(70).expand(2, -1)
    allows = found.allows(row, place)
    assert torch.nonzero(allows[1]).flatten().tolist() == [2, 7]
    assert torch.nonzero(~allows[0]).flatten().tolist() == [0, 1]


def test_a_million_items_take_a_fifth_of_a_megabyte_per_request():
    found = allow_and_deny([None], [np.zeros(0, int)], 1_000_000)
    assert found.words.nbytes + found.before.nbytes < 200_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: allow_and_deny([None, np.array([3])], [np.zeros(0, int), np.array([3])], 9),
            "request 1 leaves no item; loosen it",
        ),
        (lambda: allow_and_deny([np.array([9])], [np.zeros(0, int)], 9), r"places must be in \[0, 9\), found 9"),
        (lambda: pack_ranges(np.array([0]), np.array([0]), np.array([10]), 1, 9), r"places must be in \[0, 9\), found 9"),
        (lambda: item_filter(torch.zeros(1, 2, dtype=torch.long), 9), "9 items need 1 words of 64 bits, found 2"),
    ],
)
def test_filters_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
