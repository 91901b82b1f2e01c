"""Filters of the items that a request allows: one bit per item in 64-bit words, with running counts for fast range queries.

Places are positions in a trie's `item_ids`, so the items below a prefix are a range of places. Words of several
conditions are combined by `&`, `|` and `~`; bits after the last item have no meaning. For a million items a request needs
0.2 MB: a bit per item, and a count per word.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

WORD = 64


class ItemFilter(NamedTuple):
    """The items allowed in each of B requests, at least one per request; made by `item_filter`."""

    words: Int64[Tensor, "B W"]
    """Bit i % 64 of word i // 64 says whether item i is allowed."""
    before: Int[Tensor, "B W1"]
    """Number of allowed items before each word, and in total as the last entry."""
    num_items: int
    """Number of items of the catalogue, N."""

    def to(self, device: str | torch.device) -> "ItemFilter":
        """Return the filter with its tensors on a device."""
        return self._replace(words=self.words.to(device), before=self.before.to(device))

    def rows(self, rows: Sequence[int]) -> "ItemFilter":
        """Return the filters of some of the requests."""
        at = torch.as_tensor(rows, device=self.words.device)
        return self._replace(words=self.words[at], before=self.before[at])

    def num_before(self, row: Int[Tensor, "*P"], place: Int[Tensor, "*P"]) -> Int[Tensor, "*P"]:
        """Count the allowed items at places below `place`, which is in [0, N], in the request of `row`."""
        word = place // WORD
        last = self.words.shape[1] - 1
        below = self.words[row, word.clamp(max=last)] & ((1 << (place % WORD)) - 1)
        return self.before[row, word] + torch.where(word > last, 0, count_bits(below))

    def allows(self, row: Int[Tensor, "*P"], place: Int[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        """Whether the item at each place is allowed."""
        return ((self.words[row, place // WORD] >> (place % WORD)) & 1).bool()


def item_filter(words: Int64[Tensor, "B W"], num_items: int) -> ItemFilter:
    """Count the allowed items of packed words.

    Raises:
        ValueError: the number of words does not match N items, or a request allows no item.
    """
    width = -(-num_items // WORD)
    if words.shape[1] != width:
        raise ValueError(f"filter: {num_items} items need {width} words of {WORD} bits, found {words.shape[1]}")
    if num_items % WORD:
        words = torch.cat([words[:, :-1], words[:, -1:] & ((1 << num_items % WORD) - 1)], 1)
    before = torch.nn.functional.pad(count_bits(words).cumsum(1, dtype=torch.int32), (1, 0))
    empty = torch.nonzero(before[:, -1] == 0).flatten().tolist()
    if empty:
        raise ValueError(f"filter: the filter of request {empty[0]} leaves no item; loosen it")
    return ItemFilter(words, before, num_items)


def count_bits(words: Int64[Tensor, "*P"]) -> Int64[Tensor, "*P"]:
    """Count the set bits of each word (Warren, Hacker's Delight, section 5-1)."""
    pairs = words - ((words >> 1) & 0x5555555555555555)
    nibbles = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    return (((nibbles + (nibbles >> 4)) & 0x0F0F0F0F0F0F0F0F) * 0x0101010101010101) >> 56


def pack_mask(allowed: Bool[Tensor, "B N"]) -> Int64[Tensor, "B W"]:
    """Pack a boolean per item."""
    bits = np.packbits(allowed.cpu().numpy(), axis=1, bitorder="little")
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return torch.from_numpy(bits.view("<i8").astype(np.int64, copy=False)).to(allowed.device)


def pack_items(row: Int[np.ndarray, " P"], place: Int[np.ndarray, " P"], num_rows: int, num_items: int) -> Int64[Tensor, "B W"]:
    """Set the bits of items, given as pairs (request, place) in any order; pairs may repeat."""
    words = np.zeros((num_rows, -(-num_items // WORD)), np.int64)
    _check_places(place, num_items)
    np.bitwise_or.at(words, (row, place // WORD), np.int64(1) << (place % WORD))
    return torch.from_numpy(words)


def pack_ranges(
    row: Int[np.ndarray, " P"], start: Int[np.ndarray, " P"], end: Int[np.ndarray, " P"], num_rows: int, num_items: int
) -> Int64[Tensor, "B W"]:
    """Set the bits of ranges of places [start, end), for example the items below a prefix; ranges may overlap."""
    width = -(-num_items // WORD)
    some = end > start
    row, first, last = row[some], start[some], end[some] - 1
    _check_places(np.concatenate([first, last]), num_items)
    head, tail = first // WORD, last // WORD
    # completely filled words of a range: +1 at the first, -1 after the last
    change = np.zeros((num_rows, width + 1), np.int32)
    np.add.at(change, (row, np.minimum(head + 1, tail)), 1)
    np.add.at(change, (row, tail), -1)
    words = -(change[:, :width].cumsum(1) > 0).astype(np.int64)
    from_first = np.int64(-1) << (first % WORD)
    to_last = ~(np.int64(-2) << (last % WORD))
    one = head == tail
    np.bitwise_or.at(words, (row, head), np.where(one, from_first & to_last, from_first))
    np.bitwise_or.at(words, (row[~one], tail[~one]), to_last[~one])
    return torch.from_numpy(words)


def allow_and_deny(
    allow: Sequence[Int[np.ndarray, " P"] | None], deny: Sequence[Int[np.ndarray, " Q"]], num_items: int
) -> ItemFilter:
    """Make the filter of requests that each have allowed places (None: all) and denied places.

    Raises:
        ValueError: a place is outside the catalogue, or a request allows no item.
    """
    given = [np.zeros(0, np.int64) if places is None else places for places in allow]
    words = pack_items(*_pairs(given), len(given), num_items)
    words[torch.tensor([places is None for places in allow], dtype=torch.bool)] = -1
    return item_filter(words & ~pack_items(*_pairs(deny), len(deny), num_items), num_items)


def _pairs(places: Sequence[Int[np.ndarray, " P"]]) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    lengths = [len(one) for one in places]
    return np.repeat(np.arange(len(places)), lengths), np.concatenate([np.zeros(0, np.int64), *places])


def _check_places(place: Int[np.ndarray, " P"], num_items: int) -> None:
    wrong = (place < 0) | (place >= num_items)
    if wrong.any():
        raise ValueError(f"filter: places must be in [0, {num_items}), found {int(place[wrong.argmax()])}")
