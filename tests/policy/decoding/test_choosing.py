"""The compiled choice of beams and the one in PyTorch are the same search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digr.policy.decoding import choosing
from digr.policy.decoding.choosing import Frontier, first_beams
from digr.policy.decoding.cpu import _any_allowed, _exponentials
from digr.sids.filters import ItemFilter, allow_and_deny
from digr.sids.trie import SidTrie, build_trie
from tests.sids.catalogues import catalogues


def _next_compiled(trie: SidTrie, beams: Frontier, logits: torch.Tensor, width: int, chosen: ItemFilter | None) -> Frontier:
    return choosing.next_beams(trie, beams, logits, width, chosen=chosen)


def _next_in_torch(trie: SidTrie, beams: Frontier, logits: torch.Tensor, width: int, chosen: ItemFilter | None) -> Frontier:
    return choosing._next_in_torch(trie, beams, logits, width, chosen=chosen, generator=None)


@given(catalogues(), st.integers(0, 10_000), st.sampled_from([1, 2, 3, 7, 40]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_both_ways_give_the_same_beams_on_any_catalogue_level_after_level(catalogue, seed, width, is_filtered):
    codes, sizes = catalogue
    rng = np.random.default_rng(seed)
    trie = build_trie([str(index) for index in range(len(codes))], codes, sizes)
    some = [rng.choice(len(codes), rng.integers(1, len(codes) + 1), replace=False) for _ in range(3)]
    chosen = allow_and_deny(some, [np.zeros(0, int)] * 3, len(codes)) if is_filtered else None
    one, two = first_beams(trie, 3), first_beams(trie, 3)
    for size in sizes:
        if not one.code.shape[1]:
            break
        logits = torch.from_numpy(rng.normal(0, 3, (*one.code.shape, size)).astype(np.float32))
        one, two = _next_compiled(trie, one, logits, width, chosen), _next_in_torch(trie, two, logits, width, chosen)
        for row in range(3):  # behind a request's last beam one way may have more columns
            real, still_open = int((one.node[row] >= 0).sum()), int(one.is_open[row].sum())
            for name, count in (("node", real), ("is_open", real), ("score", real), ("code", still_open), ("branch", still_open)):
                left, right = (getattr(beams, name)[row] for beams in (one, two))
                torch.testing.assert_close(left[:count], right[:count], atol=1e-5, rtol=1e-6)
            assert (two.node[row, real:] < 0).all()
        assert one.key.tolist() == one.score.tolist()
        assert (one.score[one.node < 0] == -torch.inf).all()


@pytest.mark.parametrize("step", [_next_compiled, _next_in_torch])
def test_equal_scores_keep_the_order_of_parents_then_codes_and_settled_beams_come_last(step):
    trie = build_trie(list("abcde"), np.array([[0, 0], [0, 1], [1, 2], [2, 0], [2, 2]]), (3, 3))
    beams = step(trie, first_beams(trie, 1), torch.zeros(1, 1, 3), 3, None)
    assert (beams.node.tolist(), beams.is_open.tolist()) == ([[1, 2, 3]], [[True, False, True]])
    assert (beams.code.tolist(), beams.branch.tolist()) == ([[0, 2]], [[0, 0]])
    torch.testing.assert_close(beams.score, torch.full((1, 3), -np.log(3)))
    # codes 0 and 1 below node 1, codes 0 and 2 below node 3; what is settled keeps its score, the best of all
    last = step(trie, beams, torch.zeros(1, 2, 3), 4, None)
    assert last.node.tolist() == [[2, 4, 5, 7]]
    torch.testing.assert_close(last.score, -torch.tensor([[3.0, 6, 6, 6]]).log())
    assert last.code.shape == last.branch.shape == (1, 0)
    half = float(step(trie, beams._replace(score=torch.zeros(1, 3)), torch.zeros(1, 2, 3), 9, None).score[0, 1])
    even = step(trie, beams._replace(score=torch.tensor([[0.0, half, 0]])), torch.zeros(1, 2, 3), 5, None)
    assert even.node.tolist() == [[4, 5, 7, 8, 2]], "of five equal scores the settled beam is the last"
    assert even.score.tolist() == [[half] * 5]


def test_the_exponentials_are_those_of_numpy_over_the_range_of_their_results():
    values = -np.concatenate([[0], np.geomspace(1e-6, 87, 4001)]).astype(np.float32)
    shifted = values + np.float32(5)
    largest, total = _exponentials(shifted, np.empty(len(values), np.int32))
    assert largest == 5
    expected = np.exp((values + np.float32(5) - np.float32(5)).astype(np.float64))
    np.testing.assert_allclose(shifted, expected, rtol=3e-7)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)
    far = np.array([3, -1e30], np.float32)
    assert _exponentials(far, np.empty(2, np.int32)) == (3, 1)


@given(st.integers(0, 2**32), st.integers(1, 200), st.sampled_from([0.0, 0.01, 0.5]))
@settings(max_examples=60, deadline=None)
def test_a_range_holds_an_allowed_item_or_not(seed, num_items, share):
    rng = np.random.default_rng(seed)
    allowed = rng.random(num_items) < share
    allowed[rng.integers(num_items)] = True
    chosen = allow_and_deny([np.flatnonzero(allowed)], [np.zeros(0, int)], num_items)
    for start, end in np.sort(rng.integers(0, num_items + 1, (20, 2)), 1):
        if start < end:
            found = _any_allowed(chosen.words[0].numpy(), chosen.before[0].numpy(), start, end)
            assert found == allowed[start:end].any()
