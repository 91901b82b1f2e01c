"""Filters and title searches against plain loops."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from digr.serving.facts import ItemFacts, map_facts, matching_items, num_marked, pack, save_facts, search_titles, unpack
from digr.serving.item_rows import map_rows, save_rows
from digr.serving.word_index import query_words
from digr.tables import table_spec

NUM = 200
WORDS = ["Brass", "lamp", "lamps", "3M", "über-cool", "LED", "brassica", "of", "chandeliering", "chandelierings"]


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


def _table(items: list[dict]) -> pa.Table:
    schema = table_spec("items").schema
    return pa.Table.from_pylist([{name: item.get(name) for name in schema.names} for item in items], schema=schema)


def _mapped(folder: Path, items: list[dict], popular: np.ndarray, changed: list[int] = (), rows: list[dict] = ()) -> ItemFacts:
    save_facts(folder, _table(items), popular)
    return map_facts(folder, map_rows(folder / "items.arrow"), np.array(changed, np.int64), _table(rows))


@pytest.fixture(scope="module", params=(0, 3, 4))
def both(request, tmp_path_factory):
    """Items and their facts: of a run alone, then with items that were added and changed."""
    rng, folder = np.random.default_rng(request.param), tmp_path_factory.mktemp("facts")
    items, popular = _items(rng), rng.permutation(NUM)
    if request.param < 3:
        return items, _mapped(folder, items, popular)
    now = list(items)
    for place in rng.choice(NUM, 30, replace=False).tolist():
        now[place] = _items(rng)[place] | {"currency": "SEK"}
    now += [item | {"item_id": f"new{number}"} for number, item in enumerate(_items(rng)[:40])]
    changed = [place for place, item in enumerate(now) if place >= NUM or item is not items[place]]
    return now, _mapped(folder, items, popular, changed, [now[place] for place in changed])


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
    assert unpack(found, len(items)).tolist() == expected


def test_the_currencies_of_a_catalogue_are_those_of_its_prices(tmp_path):
    rows = [("a", 1.0, "JPY"), ("b", 2.0, None), ("c", None, "CHF"), ("d", 3.0, "EUR"), ("e", 4.0, "JPY")]
    named = [{"item_id": item, "title": item, "price": price, "currency": currency} for item, price, currency in rows]
    facts = _mapped(
        tmp_path, named, np.arange(5), [3, 5], [named[1] | {"item_id": "d"}, named[3] | {"item_id": "f", "currency": "DKK"}]
    )
    assert (facts.currencies, facts.currency.tolist()) == (("EUR", "JPY", "DKK"), [1, -1, -1, -1, 1, 2])


def test_a_catalogue_without_prices_has_no_currency(tmp_path):
    assert _mapped(tmp_path, [{"item_id": "a", "title": "a", "price": 1.0}], np.arange(1)).currencies == ()


QUERIES = ["brass", "LAMP", "lamp brass", "über", "cool", "3m", "ass", "brass lamp", ""]
LONG_QUERIES = ["chandelier", "chandeliering", "chandelierings lamp"]


@pytest.mark.parametrize("query", QUERIES + LONG_QUERIES)
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
    assert facts.popularity[facts.popular].tolist() == list(range(len(items)))
    hits.sort(key=lambda place: (not " ".join(words(items[place]["title"])).startswith(query.lower()), facts.popularity[place]))
    assert search_titles(facts, query, 10).tolist() == hits[:10]


def test_words_after_the_sixteenth_are_not_looked_at(both):
    _, facts = both
    query = " ".join(["brass"] * 8 + ["lamp"] * 8 + ["nowhere"])
    assert sorted(search_titles(facts, query, NUM)) == sorted(search_titles(facts, "lamp brass", NUM)) != []
    assert query_words(query) == ("brass",) * 8 + ("lamp",) * 8


def test_a_row_is_that_of_its_place_in_any_order_and_batch(both, tmp_path, monkeypatch):
    items, facts = both
    places = np.random.default_rng(0).integers(0, len(items), 70)
    assert facts.table.take(places, ["item_id"])["item_id"].to_pylist() == [items[place]["item_id"] for place in places]
    assert facts.table.take(places)["title"].to_pylist() == [items[place]["title"] for place in places]
    assert facts.table.take([]).num_rows == 0
    monkeypatch.setattr("digr.serving.item_rows._BATCH_ROWS", 7)
    save_rows(tmp_path / "rows.arrow", _table(items[:NUM]))
    small = map_rows(tmp_path / "rows.arrow").with_changes(np.array([5]), _table(items[:1]))
    wanted = places[places < NUM]
    assert small.take(wanted, ["item_id"])["item_id"].to_pylist() == [
        items[0 if place == 5 else place]["item_id"] for place in wanted
    ]


@pytest.mark.parametrize("num", [1, 63, 64, 65, 1000])
def test_marked_items_are_counted_also_where_a_word_is_negative(num):
    for mask in (
        np.ones(num, bool),
        np.zeros(num, bool),
        np.arange(num) % 64 == 63,
        np.random.default_rng(num).random(num) < 0.5,
    ):
        assert num_marked(pack(mask)) == mask.sum()
