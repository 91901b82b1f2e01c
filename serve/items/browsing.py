"""Look at the catalogue: items, searches, and the tree of semantic IDs."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from digr.policy.vocabulary import sid_texts
from digr.serving.build import INTERESTS, SAMPLES
from digr.serving.facts import search_titles
from digr.serving.interest_search import search_interests
from digr.serving.tree import PrefixChildren, Spans, children_of, common_interests, places_below
from serve.contract.item_schemas import MAX_CHILDREN, FoundItem, FoundItems, Item, SidChild, SidLevel
from serve.contract.problems import ProblemError, unknown_item
from serve.items.catalogue import ServedRun
from serve.lists.listing import image_path


def show_item(run: ServedRun, item_id: str) -> Item:
    """Return all facts of an item.

    Raises:
        ProblemError: there is no such item.
    """
    place = find_item(run, item_id)
    row = run.facts.table.take([place]).to_pylist()[0]
    codes = run.trie.codes[place].tolist()
    return Item(
        item_id=row["item_id"],
        title=row["title"],
        description=row["description"],
        brand=row["brand"],
        categories=[category for category in row["categories"] or [] if category],
        price=row["price"],
        currency=row["currency"],
        available=run.listed is None or bool(run.listed[place]),
        image=image_path(row["item_id"], row["image_uri"]),
        sid=[code for code in codes if code >= 0],
        sid_text=sid_texts(np.array([codes]))[0],
        interests=run.interests_of(place),
    )


def find_item(run: ServedRun, item_id: str) -> int:
    """Return an item's place.

    Raises:
        ProblemError: there is no such item.
    """
    place = int(run.facts.ids.find([item_id])[0])
    if place < 0:
        raise unknown_item(item_id)
    return place


def search(run: ServedRun, query: str, limit: int) -> FoundItems:
    """Find items by the words of their titles, then, up to the limit, by canonical interests that match the words.

    Without a query, list the most popular items.
    """
    if not query.strip():
        return FoundItems(items=_found(run, run.popular[:limit]))
    places = search_titles(run.facts, query, limit, run.listed)
    items = _found(run, places)
    if len(places) < limit and run.tables.canonical and run.interest_index:
        popularity = run.facts.popularity
        more, named = search_interests(run.interest_index, run.interests, popularity, query, limit, listed=run.listed)
        new = np.flatnonzero(~np.isin(more, places))[: limit - len(places)]
        names = run.tables.canonical.names.take(pa.array(named[new])).to_pylist()
        served = zip(_found(run, more[new]), names, strict=True)
        items += [item.model_copy(update={"interest": name}) for item, name in served]
    return FoundItems(items=items)


def show_level(run: ServedRun, prefix: str) -> SidLevel:
    """Return the children of a prefix such as `3.17`; the empty one is the root.

    Raises:
        ProblemError: no semantic ID begins with it, or it is not written as codes with dots.
    """
    try:
        codes = [int(code) for code in prefix.split(".")] if prefix else []
        found = children_of(run.trie, codes)
    except ValueError as error:
        raise ProblemError("unknown-prefix", 404, "No such prefix", str(error), fields=["prefix"]) from None
    shown = slice(0, MAX_CHILDREN)
    shown_of = _shown_of_root(run, found) if not codes else _shown_of(run, found.spans[shown])
    children = []
    for code, spans, leaf, (best, common) in zip(found.codes, found.spans, found.is_leaf, shown_of, strict=False):
        num_items, samples = sum(end - start for start, end in spans), _found(run, best)
        children.append(
            SidChild(
                code=code,
                prefix=".".join(map(str, [*codes, code])),
                num_items=num_items,
                item_id=samples[0].item_id if leaf and num_items == 1 and samples else None,
                samples=samples,
                interests=common,
            )
        )
    return SidLevel(prefix=prefix, level=len(codes), num_items=found.num_items, children=children)


def _shown_of(run: ServedRun, spans: Sequence[Spans]) -> list[tuple[Int[np.ndarray, " M"], list[str]]]:
    """Return the most popular items and the most frequent interests of each child."""
    below = [_listed(run, places_below(one)) for one in spans]
    best = [places[np.argsort(run.facts.popularity[places])[:SAMPLES]] for places in below]
    return list(zip(best, common_interests(run.interests, spans, INTERESTS), strict=True))


def _shown_of_root(run: ServedRun, found: PrefixChildren) -> list[tuple[Int[np.ndarray, " M"], list[str]]]:
    """Return the same for the root's children: of the run's items, which were counted when the run was built.

    A child that has added items only is counted now.
    """
    new = [place for place, code in enumerate(found.codes) if code not in run.tables.root]
    counted = dict(zip(new, _shown_of(run, [found.spans[place] for place in new]), strict=True))
    known = run.tables.root
    shown = []
    for place, code in enumerate(found.codes[:MAX_CHILDREN]):
        if place not in counted:
            samples = _listed(run, np.array(known[code]["samples"], np.int64))
            counted[place] = samples, known[code]["interests"]
        shown.append(counted[place])
    return shown


def _listed(run: ServedRun, places: Int[np.ndarray, " M"]) -> Int[np.ndarray, " m"]:
    return places if run.listed is None else places[run.listed[places]]


def _found(run: ServedRun, places: Int[np.ndarray, " M"]) -> list[FoundItem]:
    rows = run.facts.table.take(places, ["item_id", "title", "image_uri"]).to_pylist()
    return [
        FoundItem(item_id=row["item_id"], title=row["title"], image=image_path(row["item_id"], row["image_uri"])) for row in rows
    ]
