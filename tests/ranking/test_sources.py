"""Which candidates the sources propose, and which of them a system ranks."""

import numpy as np

from digr.ranking import sources
from digr.ranking.lists import source_names
from digr.ranking.neighbours import HistoryItems, Neighbours
from digr.ranking.sources import SOURCES, choose, union
from digr.ranking.systems import SERVED, System, candidates_of, families_of, systems_of
from tests.ranking.tiny_view import NUM_ITEMS, candidates_after, random_view, some_histories

GENERATED = Neighbours(np.array([0, 2, 3, 3]), np.array([9, 4, 1], np.int32), np.ones(3, np.float32))


def test_each_candidate_says_which_list_has_it_where():
    lists = {"a": Neighbours(np.array([0, 2, 3]), np.array([5, 3, 0], np.int32), np.ones(3, np.float32)), "b": GENERATED}
    lists["b"] = Neighbours(np.array([0, 1, 1]), np.array([3], np.int32), np.ones(1, np.float32))
    found = union(lists, NUM_ITEMS)
    assert found.request.tolist() == [0, 0, 1]
    assert found.item.tolist() == [3, 5, 0]
    assert found.ranks.tolist() == [[2, 1], [1, 0], [1, 0]]
    assert source_names(found, ["a", "b"]).to_pylist() == [["a", "b"], ["a"], ["a"]]
    assert source_names(found, ["b"]).to_pylist() == [["b"], [], []]


def test_the_candidates_are_the_union_of_all_lists_each_once():
    view = random_view(0, ("interests", "text_twin"), images=True)
    found = candidates_after(view, some_histories(), GENERATED)
    assert found.sources == (*SOURCES, "interests", "interests_steps", "text_twin", "text_twin_steps")
    assert (found.ranks > 0).any(axis=0).all()
    pairs = list(zip(found.request.tolist(), found.item.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert pairs == sorted(pairs)
    column = {name: found.ranks[:, place] for place, name in enumerate(found.sources)}
    newest = {pairs[row]: int(rank) for row, rank in enumerate(column["history"]) if rank}
    assert newest == {(0, 7): 1, (0, 0): 2, (0, 4): 3, (2, 2): 1, (2, 7): 2}
    generated = {pairs[row]: int(rank) for row, rank in enumerate(column["generation"]) if rank}
    assert generated == {(0, 9): 1, (0, 4): 2, (1, 1): 1}
    assert (found.ranks > 0).any(axis=1).all()


def test_without_a_policy_nothing_is_generated():
    found = candidates_after(random_view(0), some_histories())
    assert not found.ranks[:, found.sources.index("generation")].any()


def test_a_repeated_item_stands_where_it_was_last():
    found = candidates_after(random_view(0), HistoryItems(np.array([5, 2, 5]), np.array([0, 3])))
    history = dict(zip(found.item.tolist(), found.ranks[:, 0].tolist(), strict=True))
    assert (history[5], history[2]) == (1, 2)


def test_a_system_ranks_what_its_own_sources_propose():
    view = random_view(3, ("interests", "text_twin"))
    found = candidates_after(view, some_histories(), GENERATED)
    proposed = {name: found.ranks[:, place] > 0 for place, name in enumerate(found.sources)}
    common = np.any([proposed[name] for name in SOURCES if name != "generation"], axis=0)
    assert (
        candidates_of(SERVED, found).tolist()
        == (common | proposed["generation"] | proposed["interests"] | proposed["interests_steps"]).tolist()
    )
    plain = System("x", generation=False)
    assert candidates_of(plain, found).tolist() == common.tolist()


def test_a_request_has_a_bounded_number_of_candidates_the_highest_first(monkeypatch):
    monkeypatch.setattr(sources, "MAX_CANDIDATES", 3)
    found = candidates_after(random_view(4), some_histories(), GENERATED)
    chosen = choose(found, SOURCES)
    best = np.where(found.ranks[:, : len(SOURCES)] > 0, found.ranks[:, : len(SOURCES)], 255).min(1)
    for request in range(3):
        mine = found.request == request
        assert chosen[mine].sum() == 3
        assert best[mine & chosen].max() <= best[mine & ~chosen].min(initial=255)


def test_a_longer_list_than_that_has_as_many_candidates_as_items_are_wanted(monkeypatch):
    monkeypatch.setattr(sources, "MAX_CANDIDATES", 3)
    found = candidates_after(random_view(4), some_histories(), GENERATED)
    proposed = np.bincount(found.request)
    assert np.bincount(found.request[choose(found, SOURCES, 7)]).tolist() == np.minimum(proposed, 7).tolist()


def test_the_ablations_name_their_systems_and_families():
    systems = systems_of(("generation", "interests", "shuffled", "text_twin"))
    assert [system.name for system in systems] == [
        "ranked",
        "ranked_without_generation",
        "ranked_without_interests",
        "ranked_shuffled_0",
        "ranked_shuffled_1",
        "ranked_shuffled_2",
        "ranked_text_twin",
    ]
    assert families_of(systems) == ("interests", "shuffled_0", "shuffled_1", "shuffled_2", "text_twin")
    assert systems[1].fitted == "ranked"
    assert systems_of(()) == [SERVED]
