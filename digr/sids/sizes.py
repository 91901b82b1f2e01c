"""Level sizes for `sids.level_sizes = "auto"`."""

import math

from digr.config.sids import SidsConfig

NUM_LEVELS = 3
ITEMS_PER_CODE = 16
SMALLEST, LARGEST = 4, 256
TUPLES_PER_ITEM = 100
"""Least number of code tuples per item; large catalogues need levels above `LARGEST` for it."""


def auto_level_sizes(num_items: int) -> tuple[int, ...]:
    """Return three equal level sizes for a catalogue, a power of two.

    The size is the power of two nearest to num_items / 16, from 4 to 256. It is larger only if 256 codes per level give fewer
    than a hundred tuples per item (from 167,773 items on). It is at most half of the items, so that every code can have two
    items.

    >>> [auto_level_sizes(num_items)[0] for num_items in (600, 3_686, 12_101, 1_000_000, 20_000_000)]
    [32, 256, 256, 512, 2048]
    >>> auto_level_sizes(40), auto_level_sizes(6)
    ((4, 4, 4), (2, 2, 2))

    Args:
        num_items: at least 1.
    """
    powers = [2**power for power in range(int(math.log2(SMALLEST)), int(math.log2(LARGEST)) + 1)]
    size = min(powers, key=lambda power: abs(power - num_items / ITEMS_PER_CODE))
    while size >= LARGEST and size**NUM_LEVELS < TUPLES_PER_ITEM * num_items:
        size *= 2
    while size > max(2, num_items / 2):
        size //= 2
    return (size,) * NUM_LEVELS


def sized(sids: SidsConfig, num_items: int) -> SidsConfig:
    """Return the section with numbers in place of "auto", for fitting a quantiser.

    Later stages read the level sizes from the manifests of `quantiser` and `item_sids`, because the catalogue may grow.
    """
    return sids.model_copy(update={"level_sizes": auto_level_sizes(num_items)}) if sids.level_sizes == "auto" else sids
