"""Facts of each item as Arrow columns in the trie's order, with filters and the search of titles."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from digr.data.ids import IdIndex, build_id_index


class ItemFacts(NamedTuple):
    """Facts of N items; everything is in one order of items."""

    ids: IdIndex
    table: pa.Table
    """Columns of `items`."""
    words: pa.Array
    """Titles for the search, see `words_of`."""
    price: Float[np.ndarray, " N"]
    """NaN for items without a price."""
    currencies: tuple[str, ...]
    """Currencies of the items' prices, in alphabetical order; empty if none is known."""
    currency: Int[np.ndarray, " N"]
    """Index of an item's currency in `currencies`; -1 if it has no price or no known currency."""
    categories: IdIndex
    category_rows: Int[np.ndarray, " F"]
    """Items of all categories, grouped by category."""
    category_offsets: Int[np.ndarray, " C1"]
    """Items of category c are `category_rows[category_offsets[c]:category_offsets[c + 1]]`."""
    popularity: Int[np.ndarray, " N"]
    """Rank of each item, 0 for the most popular."""


def index_facts(items: pa.Table, popularity: Int[np.ndarray, " N"]) -> ItemFacts:
    """Index rows of `items` for filters and searches.

    Args:
        items: N rows in the order in which items will be asked for.
        popularity: rank of each item, 0 for the most popular.
    """
    items = items.combine_chunks()
    lists = items["categories"].combine_chunks()
    flat = pc.cast(lists.flatten(), pa.string())
    named = pc.and_kleene(pc.is_valid(flat), pc.not_equal(flat, "")).to_numpy(zero_copy_only=False).astype(bool)
    flat, parents = flat.filter(pa.array(named)), pc.list_parent_indices(lists).to_numpy()[named]
    coded = flat.dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    names = coded.dictionary
    price = items["price"].cast(pa.float64()).fill_null(np.nan).to_numpy()
    named_currency = pc.if_else(pa.array(np.isfinite(price)), items["currency"].combine_chunks(), None)
    currencies = sorted(pc.unique(named_currency).drop_null().to_pylist())
    return ItemFacts(
        ids=build_id_index(items["item_id"]),
        table=items,
        words=words_of(items["title"].combine_chunks()),
        price=price,
        currencies=tuple(currencies),
        currency=pc.index_in(named_currency, value_set=pa.array(currencies, pa.string())).fill_null(-1).to_numpy(),
        categories=build_id_index(names),
        category_rows=parents[order],
        category_offsets=np.searchsorted(codes[order], np.arange(len(names) + 1)),
        popularity=popularity,
    )


def matching_items(
    facts: ItemFacts,
    *,
    item_ids: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    brands: Sequence[str] | None = None,
    min_price: float | None = None,
    max_price: float | None = None,
    currency: str | None = None,
) -> Bool[np.ndarray, " N"]:
    """Mark the items that meet all given conditions; without conditions, all items.

    Unknown ids, categories, brands and currencies match no item, and an item without a price is in no price range. Without a
    currency only the numbers are compared, which is correct if `facts.currencies` has at most one.
    """
    match = np.ones(len(facts.ids), bool)
    if item_ids is not None:
        named = np.zeros_like(match)
        places = facts.ids.find(item_ids)
        named[places[places >= 0]] = True
        match &= named
    if categories is not None:
        within = np.zeros_like(match)
        for category in facts.categories.find(categories).tolist():
            if category >= 0:
                within[facts.category_rows[facts.category_offsets[category] : facts.category_offsets[category + 1]]] = True
        match &= within
    if brands is not None:
        match &= np.asarray(pc.is_in(facts.table["brand"], value_set=pa.array(brands, pa.string())))
    if min_price is not None:
        match &= facts.price >= min_price
    if max_price is not None:
        match &= facts.price <= max_price
    if currency is not None:
        known = currency in facts.currencies
        match &= facts.currency == facts.currencies.index(currency) if known else np.zeros_like(match)
    return match


def search_titles(
    facts: ItemFacts, query: str, limit: int, listed: Bool[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, " M"]:
    """Find items whose title has words that begin with every word of the query, in any order.

    Titles that begin with the query come first, then more popular items. A query without letters or digits finds nothing.

    Args:
        listed: items that may be found; None for all.
    """
    found, whole = find_words(facts.words, query)
    if listed is not None:
        found, whole = found[listed[found]], whole[listed[found]]
    return found[np.lexsort((facts.popularity[found], ~whole))][:limit]


def words_of(texts: pa.Array) -> pa.Array:
    """Return the words of texts for `find_words`: lower case, a space before each word."""
    words = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\pL\pN]+", " ")
    return pc.binary_join_element_wise("", pc.utf8_trim_whitespace(words), " ")


def find_words(words: pa.Array, query: str) -> tuple[Int[np.ndarray, " M"], Bool[np.ndarray, " M"]]:
    """Find texts in which every word of a query begins some word, and mark those that begin with the query itself.

    A query without letters or digits finds nothing.

    Args:
        words: of N texts, see `words_of`.
    """
    wanted = words_of(pa.array([query]))[0].as_py()
    match = np.full(len(words), bool(wanted.strip()))
    for word in dict.fromkeys(wanted.split()):
        match &= pc.match_substring(words, f" {word}").to_numpy(zero_copy_only=False)
    found = np.flatnonzero(match)
    return found, pc.starts_with(words.take(pa.array(found)), wanted).to_numpy(zero_copy_only=False).astype(bool)
