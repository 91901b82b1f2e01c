"""Filters and title searches against plain loops."""

import numpy as np
import pyarrow as pa
import pytest

from digr.serving.facts import index_facts, matching_items, search_titles
from digr.tables import table_spec

NUM = 200
WORDS = ["Brass", "lamp", "lamps", "3M", "über-cool", "LED", "brassica", "of"]


def _items(rng: np.random.Generator) -> list[dict]:
    return [
        {
            "item_id": f"i{index}",
            "title": " ".join(rng.choice(WORDS, rng.integers(1, 4))),
            "categories": None if rng.random() < 0.2 else rng.choice(["a", "b", "c", ""], rng.integers(0, 3)).tolist(),
            "price": None if rng.random() < 0.2 else float(rng.integers(0, 20)),
            "currency": None if rng.random() < 0.2 else str(rng.choice(["EUR", "JPY"])),
        }
        for index in range(NUM)
    ]


@pytest.fixture(scope="module", params=range(3))
def both(request):
    rng = np.random.default_rng(request.param)
    items = _items(rng)
    schema = table_spec("items").schema
    rows = [{name: item.get(name) for name in schema.names} for item in items]
    return items, index_facts(pa.Table.from_pylist(rows, schema=schema), rng.permutation(NUM))


@pytest.mark.parametrize("item_ids", [None, [], ["i3", "i7", "ghost", "i3"]])
@pytest.mark.parametrize("categories", [None, [], ["a"], ["b", "c"], ["nothing", ""]])
@pytest.mark.parametrize(("low", "high"), [(None, None), (5, None), (None, 5), (5, 9), (9, 5)])
@pytest.mark.parametrize("currency", [None, "EUR", "CHF"])
def test_a_filter_marks_the_items_that_meet_every_condition(both, item_ids, categories, low, high, currency):
    items, facts = both
    expected = [
        (item_ids is None or item["item_id"] in item_ids)
        and (categories is None or bool(set(categories) & (set(item["categories"] or []) - {""})))
        and (low is None or (item["price"] is not None and item["price"] >= low))
        and (high is None or (item["price"] is not None and item["price"] <= high))
        and (currency is None or (item["price"] is not None and item["currency"] == currency))
        for item in items
    ]
    found = matching_items(facts, item_ids=item_ids, categories=categories, min_price=low, max_price=high, currency=currency)
    assert found.tolist() == expected


def test_the_currencies_of_a_catalogue_are_those_of_its_prices():
    rows = [("a", 1.0, "JPY"), ("b", 2.0, None), ("c", None, "CHF"), ("d", 3.0, "EUR"), ("e", 4.0, "JPY")]
    named = [{"item_id": item, "title": item, "price": price, "currency": currency} for item, price, currency in rows]
    facts = index_facts(pa.Table.from_pylist(named, schema=table_spec("items").schema), np.arange(5))
    assert (facts.currencies, facts.currency.tolist()) == (("EUR", "JPY"), [1, -1, -1, 0, 1])
    unnamed = pa.Table.from_pylist([{"item_id": "a", "title": "a", "price": 1.0}], schema=table_spec("items").schema)
    assert index_facts(unnamed, np.arange(1)).currencies == ()


@pytest.mark.parametrize("query", ["brass", "LAMP", "lamp brass", "über", "cool", "3m", "ass", "brass lamp", ""])
def test_a_search_finds_and_orders_titles_as_a_loop_does(both, query):
    items, facts = both
    wanted = query.lower().split()

    def words(title: str) -> list[str]:
        return title.lower().replace("-", " ").split()

    hits = [
        place
        for place, item in enumerate(items)
        if wanted and all(any(word.startswith(one) for word in words(item["title"])) for one in wanted)
    ]
    hits.sort(key=lambda place: (not " ".join(words(items[place]["title"])).startswith(query.lower()), facts.popularity[place]))
    assert search_titles(facts, query, 10).tolist() == hits[:10]
