"""Facts of each item by place, mapped from files, with filters and the search of titles.

A place is a position in the trie's items. Added items come after those of the run; an item that changed keeps its place.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Int64

from digr.data.ids import IdIndex
from digr.serving.item_rows import ItemRows, save_rows
from digr.serving.mapped import map_array, map_id_index, save_array, save_id_index
from digr.serving.word_index import WordIndex, build_word_index, find_words, query_words, words_of
from digr.sids.filters import WORD


class Categories(NamedTuple):
    """The items of each category."""

    names: IdIndex
    rows: Int[np.ndarray, " F"]
    """Items of all categories of the run, grouped by category."""
    offsets: Int[np.ndarray, " C1"]
    """Items of category c are `rows[offsets[c]:offsets[c + 1]]`."""
    packed_row: Int[np.ndarray, " C"]
    """Row of a large category in `packed`; -1 for others."""
    packed: Int64[np.ndarray, "R W"]
    """The items of large categories as bits, see `ItemFilter`."""
    later: Mapping[str, Int[np.ndarray, " P"]]
    """Added and changed items of each category."""


class ItemFacts(NamedTuple):
    """Facts of N items; everything is in one order of items."""

    ids: IdIndex
    table: ItemRows
    titles: WordIndex
    """Titles of the run's items, the most popular first."""
    changed_words: pa.Array
    """Words of the titles of added and changed items, in the order of `table.changed`."""
    price: Float[np.ndarray, " N"]
    """NaN for items without a price."""
    currencies: tuple[str, ...]
    """Currencies of the items' prices, in alphabetical order; empty if none is known."""
    currency: Int[np.ndarray, " N"]
    """Index of an item's currency in `currencies`; -1 if it has no price or no known currency."""
    categories: Categories
    popular: Int[np.ndarray, " N"]
    """Items, the most popular first; added ones come last."""
    popularity: Int[np.ndarray, " N"]
    """Rank of each item, 0 for the most popular."""


def save_facts(folder: Path, items: pa.Table, popular: Int[np.ndarray, " N"]) -> None:
    """Write the facts of items for `map_facts`.

    Args:
        items: N rows in the order of their places.
        popular: places, the most popular first.
    """
    save_rows(folder / "items.arrow", items)
    save_id_index(folder, "ids", items["item_id"].combine_chunks())
    step = 65_536
    titles = (items["title"].take(pa.array(popular[at : at + step])).combine_chunks() for at in range(0, len(items), step))
    build_word_index(folder / "titles.sqlite", titles)
    price, named = _prices(items)
    currencies = sorted(pc.unique(named).drop_null().to_pylist())
    (folder / "currencies.json").write_text(json.dumps(currencies))
    save_array(folder, "price", price)
    save_array(folder, "currency", _numbers(named, currencies))
    save_array(folder, "popular", popular.astype(np.int32))
    standing = np.empty(len(popular), np.int32)
    standing[popular] = np.arange(len(popular))
    save_array(folder, "popularity", standing)
    _save_categories(folder, items)


def map_facts(folder: Path, table: ItemRows, changed: Int[np.ndarray, " C"], rows: pa.Table) -> ItemFacts:
    """Map the facts of a run's items, with those of items that were added or changed since.

    Args:
        table: the run's rows of `items`, mapped.
        changed: places of these items, ascending; those of added ones follow the run's.
        rows: their rows of `items`.
    """
    popular = map_array(folder, "popular")
    num = len(popular)
    added = changed[changed >= num].astype(np.int32)
    price, named = _prices(rows)
    known = json.loads((folder / "currencies.json").read_text())
    currencies = known + sorted(set(pc.unique(named).drop_null().to_pylist()) - set(known))
    numbers = _numbers(named, currencies)
    all_prices, all_currencies = (
        map_array(folder, name, values[len(changed) - len(added) :]) for name, values in (("price", price), ("currency", numbers))
    )
    all_prices[changed], all_currencies[changed] = price, numbers
    return ItemFacts(
        ids=map_id_index(folder, "ids", rows["item_id"].combine_chunks()[len(changed) - len(added) :]),
        table=table.with_changes(changed, rows),
        titles=WordIndex(folder / "titles.sqlite"),
        changed_words=words_of(rows["title"].combine_chunks()),
        price=all_prices,
        currencies=tuple(currencies),
        currency=all_currencies,
        categories=_map_categories(folder, changed, rows, -(-num // WORD)),
        popular=map_array(folder, "popular", added),
        popularity=map_array(folder, "popularity", added),
    )


def _prices(items: pa.Table) -> tuple[Float[np.ndarray, " N"], pa.Array]:
    """Return prices, NaN where there is none, and the currencies of those that there are."""
    price = items["price"].combine_chunks().cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return price, pc.if_else(pa.array(np.isfinite(price)), items["currency"].combine_chunks(), pa.scalar(None, pa.string()))


def _numbers(named: pa.Array, currencies: list[str]) -> Int[np.ndarray, " N"]:
    found = pc.index_in(named, value_set=pa.array(currencies, pa.string())).fill_null(-1)
    return found.to_numpy(zero_copy_only=False).astype(np.int16)


def _categories_of(items: pa.Table) -> tuple[pa.Array, Int[np.ndarray, " F"]]:
    """Return the categories of all items one after another, and the row of each."""
    lists = items["categories"].combine_chunks()
    flat = pc.cast(lists.flatten(), pa.string())
    named = pc.and_kleene(pc.is_valid(flat), pc.not_equal(flat, "")).fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    return flat.filter(pa.array(named)), pc.list_parent_indices(lists).to_numpy()[named]


def _save_categories(folder: Path, items: pa.Table) -> None:
    flat, parents = _categories_of(items)
    coded = flat.dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    rows, offsets = parents[order], np.searchsorted(codes[order], np.arange(len(coded.dictionary) + 1))
    large = np.flatnonzero(np.diff(offsets) * 32 > len(items))  # a bit for every item takes less than a number for each
    packed = np.zeros((len(large), -(-len(items) // WORD)), np.int64)
    for number, category in enumerate(large):
        packed[number] = pack_places(rows[offsets[category] : offsets[category + 1]], len(items))
    packed_row = np.full(len(coded.dictionary), -1, np.int32)
    packed_row[large] = np.arange(len(large))
    save_id_index(folder, "categories", coded.dictionary)
    save_array(folder, "category-rows", rows.astype(np.int32))
    save_array(folder, "category-offsets", offsets.astype(np.int64))
    save_array(folder, "category-packed-row", packed_row)
    save_array(folder, "category-packed", packed.ravel())


def _map_categories(folder: Path, changed: Int[np.ndarray, " C"], rows: pa.Table, num_words: int) -> Categories:
    flat, parents = _categories_of(rows)
    coded = flat.dictionary_encode()
    codes, places = coded.indices.to_numpy(zero_copy_only=False), changed[parents]
    later = {name: places[codes == number] for number, name in enumerate(coded.dictionary.to_pylist())}
    return Categories(
        names=map_id_index(folder, "categories"),
        rows=map_array(folder, "category-rows"),
        offsets=map_array(folder, "category-offsets"),
        packed_row=map_array(folder, "category-packed-row"),
        packed=map_array(folder, "category-packed").reshape(-1, num_words),
        later=later,
    )


def pack_places(places: Int[np.ndarray, " P"], num: int) -> Int64[np.ndarray, " W"]:
    """Return words with the bits of some of `num` items, see `ItemFilter`."""
    mask = np.zeros(num, bool)
    mask[places] = True
    return pack(mask)


def pack(mask: Bool[np.ndarray, " N"]) -> Int64[np.ndarray, " W"]:
    """Pack a boolean per item into words, see `ItemFilter`."""
    words = np.zeros(-(-len(mask) // WORD), "<i8")
    bits = np.packbits(mask, bitorder="little")
    words.view(np.uint8)[: len(bits)] = bits
    return words.astype(np.int64, copy=False)


def unpack(words: Int64[np.ndarray, " W"], num: int) -> Bool[np.ndarray, " N"]:
    """Return the boolean of each of `num` items."""
    return np.unpackbits(words.astype("<i8", copy=False).view(np.uint8), count=num, bitorder="little").view(bool)


def num_marked(words: Int64[np.ndarray, " W"]) -> int:
    """Return how many items are marked."""
    return int(np.bitwise_count(words.view(np.uint64)).sum())  # of a negative number the bits of its absolute value count


def matching_items(
    facts: ItemFacts,
    *,
    item_ids: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    brands: Sequence[str] | None = None,
    min_price: float | None = None,
    max_price: float | None = None,
    currency: str | None = None,
) -> Int64[np.ndarray, " W"]:
    """Mark the items that meet all given conditions, as bits of words, see `ItemFilter`; without conditions, all items.

    Unknown ids, categories, brands and currencies match no item, and an item without a price is in no price range. Without a
    currency only the numbers are compared, which is correct if `facts.currencies` has at most one.
    """
    num = len(facts.ids)
    match = pack(np.ones(num, bool))
    if item_ids is not None:
        places = facts.ids.find(item_ids)
        match &= pack_places(places[places >= 0], num)
    if categories is not None:
        match &= _of_categories(facts, categories)
    if brands is not None:
        match &= pack(_of_brands(facts, brands))
    if min_price is not None:
        match &= pack(facts.price >= min_price)
    if max_price is not None:
        match &= pack(facts.price <= max_price)
    if currency is not None:
        known = currency in facts.currencies
        match &= pack(facts.currency == facts.currencies.index(currency)) if known else 0
    return match


def _of_categories(facts: ItemFacts, categories: Sequence[str]) -> Int64[np.ndarray, " W"]:
    """Mark the items in any of some categories."""
    every, num = facts.categories, len(facts.ids)
    found = every.names.find(categories)
    found = np.unique(found[found >= 0])
    small = found[every.packed_row[found] < 0]
    rows = [every.rows[every.offsets[category] : every.offsets[category + 1]] for category in small]
    within = pack_places(np.concatenate([np.zeros(0, np.int32), *rows]), num)
    for category in found[every.packed_row[found] >= 0]:
        within[: every.packed.shape[1]] |= every.packed[every.packed_row[category]]
    if len(facts.table.changed):
        within &= ~pack_places(facts.table.changed, num)
        later = [every.later[name] for name in categories if name in every.later]
        within |= pack_places(np.concatenate([np.zeros(0, np.int64), *later]), num)
    return within


def _of_brands(facts: ItemFacts, brands: Sequence[str]) -> Bool[np.ndarray, " N"]:
    """Mark the items of any of some brands."""
    named, rows = pa.array(brands, pa.string()), facts.table
    found = np.zeros(len(facts.ids), bool)
    at = 0
    for batch in rows.batches:
        found[at : at + len(batch)] = np.asarray(pc.is_in(batch["brand"], value_set=named))
        at += len(batch)
    found[rows.changed] = np.asarray(pc.is_in(rows.rows["brand"], value_set=named))
    return found


def search_titles(
    facts: ItemFacts, query: str, limit: int, listed: Bool[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, " M"]:
    """Find items whose title has words that begin with every word of the query, in any order.

    Titles that begin with the query come first, then more popular items. A query without letters or digits finds nothing.

    Args:
        listed: items that may be found; None for all.
    """
    words = query_words(query)
    begins, has = (_first_titles(facts, words, limit, listed, whole=whole) for whole in (True, False))
    at, whole = find_words(facts.changed_words, query)
    changed = facts.table.changed[at]
    if listed is not None:
        changed, whole = changed[listed[changed]], whole[listed[changed]]
    found = np.unique(np.concatenate([begins, has, changed]))
    other = ~np.isin(found, np.concatenate([begins, changed[whole]]))
    return found[np.lexsort((facts.popularity[found], other))][:limit]


def _first_titles(
    facts: ItemFacts, words: Sequence[str], limit: int, listed: Bool[np.ndarray, " N"] | None, *, whole: bool
) -> Int[np.ndarray, " M"]:
    """Find the most popular items of the run whose title, which has not changed, matches."""
    found = np.zeros(0, np.int64)
    for ranks in facts.titles.pages(words, whole=whole, size=limit + 8):
        places = facts.popular[ranks].astype(np.int64)
        places = places[~np.isin(places, facts.table.changed)]
        found = np.concatenate([found, places if listed is None else places[listed[places]]])
        if len(found) >= limit:
            break
    return found[:limit]
