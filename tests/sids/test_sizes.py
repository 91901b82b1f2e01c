"""Level sizes of "auto" fit the catalogue."""

import doctest

import pytest

from digr.config.sids import SidsConfig
from digr.sids import sizes
from digr.sids.sizes import auto_level_sizes, sized


@pytest.mark.parametrize(
    ("num_items", "size"),
    [
        (1, 2),
        (7, 2),
        (8, 4),
        (40, 4),
        (96, 4),  # a sixteenth is as near to 4 as to 8
        (97, 8),
        (600, 32),
        (3_686, 256),
        (12_101, 256),
        (167_772, 256),
        (167_773, 512),  # 256 ** 3 tuples are fewer than a hundred an item
        (1_000_000, 512),
        (20_000_000, 2048),
    ],
)
def test_a_level_has_the_power_of_two_that_fits_the_catalogue(num_items, size):
    assert auto_level_sizes(num_items) == (size, size, size)


def test_sizes_never_shrink_as_a_catalogue_grows():
    found = [auto_level_sizes(num_items)[0] for num_items in range(1, 300_000, 97)]
    assert found == sorted(found) and all(2 <= size <= 512 for size in found)


def test_the_examples_of_the_module_hold():
    assert doctest.testmod(sizes).failed == 0


def test_auto_becomes_numbers_and_numbers_stay():
    assert sized(SidsConfig(level_sizes="auto"), 600) == SidsConfig(level_sizes=(32, 32, 32))
    assert sized(SidsConfig(level_sizes=(7, 9)), 600).sizes == (7, 9)
    with pytest.raises(AssertionError, match=r"read digr\.sids\.sizes\.sized"):
        _ = SidsConfig(level_sizes="auto").sizes
