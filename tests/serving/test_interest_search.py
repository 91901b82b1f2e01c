"""Items are found by the canonical interests that a query names."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from digr.interests.canonical import CanonicalInterests
from digr.policy.reasons import ItemInterests, index_interests
from digr.serving.interest_search import map_interest_index, save_interest_index, search_interests
from digr.tables import flat_interests
from tests.nested_interests import nest_rows

PHRASES = ["alpine trout lakes", "fly fishing", "fresh bread", "sourdough", "trout fishing", "trout, smoked"]
CANONICAL = CanonicalInterests(pa.array(PHRASES), np.array([0, 0, 1, 1, 0, 2]), pa.array(["fly fishing", "fresh bread", "trout"]))
IDS = ["a", "b", "c", "d", "e"]
OWNED = {"a": ["gifts", "sourdough"], "b": ["fly fishing"], "c": ["trout, smoked", "fresh bread"], "d": ["trout gifts"], "e": []}
POPULARITY = np.array([4, 3, 2, 1, 0])


def _search(interests: ItemInterests, popularity: np.ndarray, query: str, limit: int, added: int = 0):
    """Search through the files of all items but the last `added` ones, which come after them."""
    num = len(interests.offsets) - 1 - added
    end = interests.offsets[num]
    run = interests._replace(texts=interests.texts[:end], keys=interests.keys[:end], offsets=interests.offsets[: num + 1])
    with tempfile.TemporaryDirectory() as folder:
        save_interest_index(Path(folder), run, popularity[:num])
        index = map_interest_index(Path(folder), interests, num)
    return search_interests(index, interests, popularity, query, limit)


def _index(owned: dict[str, list[str]], canonical: CanonicalInterests | None = CANONICAL) -> ItemInterests:
    labels = [
        {"owner_id": item, "interest": phrase, "probability": 1 - rank / 10}
        for item, phrases in owned.items()
        for rank, phrase in enumerate(phrases)
    ]
    return index_interests(flat_interests(nest_rows("interest_labels", labels, list(owned))), pa.array(list(owned)), canonical)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("fishing", [("b", 0)]),
        ("SOURD", [("c", 1), ("a", 1)]),  # c has the interest by another of its phrases, and is more popular
        ("trout", [("c", 2), ("b", 0)]),
        ("lakes trout", [("b", 0)]),
        ("smoked", [("c", 2)]),
        ("alpine", [("b", 0)]),
        ("gifts", []),  # of no canonical interest
        ("rout", []),
        ("!?", []),
        ("", []),
    ],
)
def test_items_of_every_interest_that_the_query_names_are_found(query, found):
    items, interests = _search(_index(OWNED), POPULARITY, query, 10)
    assert [(IDS[item], interest) for item, interest in zip(items, interests, strict=True)] == found


def test_interests_that_begin_with_the_query_stand_first():
    owned = {"a": ["fresh bread"], "b": ["trout fishing"], "c": ["fly fishing"]}
    canonical = CanonicalInterests(
        pa.array(["bread trout", "fresh bread", "trout fishing"]), np.array([0, 0, 1]), CANONICAL.names
    )
    items, interests = _search(_index(owned, canonical), np.array([0, 1, 2]), "trout", 10)
    assert (items.tolist(), interests.tolist()) == ([1, 0], [1, 0])


def test_without_canonical_interests_there_is_no_index(tmp_path):
    save_interest_index(tmp_path, _index(OWNED, None), POPULARITY)
    assert map_interest_index(tmp_path, _index(OWNED, None), 5) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("added", [0, 3])
@pytest.mark.parametrize("limit", [1, 3, 50])
@pytest.mark.parametrize("seed", range(12))
def test_a_search_finds_what_a_look_at_every_item_finds(seed, limit, added):
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(6)]
    phrases = sorted({" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(25)})
    group = np.unique(rng.integers(0, 8, len(phrases)), return_inverse=True)[1]
    names = pa.array([phrases[np.flatnonzero(group == number)[0]] for number in range(group.max() + 1)])
    canonical = CanonicalInterests(pa.array(phrases), group, names)
    owned = {f"i{number:02d}": rng.choice([*phrases, "other"], rng.integers(0, 5)).tolist() for number in range(40)}
    popularity = np.append(rng.permutation(40 - added), np.arange(40 - added, 40))
    query = " ".join(rng.choice(words, rng.integers(1, 3)))
    items, interests = _search(_index(owned, canonical), popularity, query, limit, added)
    named = {group[row]: False for row, phrase in enumerate(phrases) if set(query.split()) <= set(phrase.split())}
    named |= {group[row]: True for row, phrase in enumerate(phrases) if f"{phrase} ".startswith(f"{query} ")}
    levels = {}
    for number, own in enumerate(owned.values()):
        found = [named[key] for phrase in own if phrase != "other" and (key := group[phrases.index(phrase)]) in named]
        if found:
            levels[number] = max(found)
    assert items.tolist() == sorted(levels, key=lambda item: (not levels[item], popularity[item]))[:limit]
    for item, interest in zip(items.tolist(), interests.tolist(), strict=True):
        own = [group[phrases.index(phrase)] for phrase in owned[f"i{item:02d}"] if phrase != "other"]
        assert interest == next(key for key in own if named.get(key) == levels[item])
