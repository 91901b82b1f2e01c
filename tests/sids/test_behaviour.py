"""Items that users visit near each other get similar vectors, counted once per step of the training rows."""

import numpy as np
import pyarrow as pa

from digr.data.transitions import TrainingSequences
from digr.sids.behaviour import behaviour_vectors


def _sequences(*lists):
    items = np.concatenate([np.asarray(one) for one in lists])
    return TrainingSequences(pa.array([f"u{i}" for i in range(len(lists))]), items, np.cumsum([0, *map(len, lists)]))


def test_items_with_the_same_neighbours_are_close_even_if_they_never_meet():
    # 0 and 1 both lead to 2, and never meet; 3 and 4 live apart; nobody visits 5, and 6 meets only itself
    chunks = [_sequences([0, 2], [1, 2], [3, 4]), _sequences([0, 2], [1, 2], [4, 3], [6, 6])]
    vectors = behaviour_vectors(chunks, 7)
    assert np.isnan(vectors[5:]).all() and np.isfinite(vectors[:5]).all()
    np.testing.assert_allclose(np.linalg.norm(vectors[:5], axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > 0.99
    assert abs(vectors[0] @ vectors[3]) < 0.01
    np.testing.assert_array_equal(behaviour_vectors(chunks, 7), vectors)


def test_the_vectors_are_the_directions_of_the_mutual_information():
    # pairs (both directions): 0-1 weight 1, 1-2 weight 1, 0-2 weight 1/2 because an interaction lies between
    counts = np.array([[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]])
    chance = counts.sum(1) ** 0.75 / (counts.sum(1) ** 0.75).sum()
    with np.errstate(divide="ignore"):
        information = np.maximum(np.log(counts / (counts.sum(1)[:, None] * chance)), 0)
    left, strength, _ = np.linalg.svd(information)
    wanted = left * np.sqrt(strength)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = behaviour_vectors([_sequences([0, 1, 2])], 3)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)


def test_without_any_pair_no_item_has_a_vector():
    assert np.isnan(behaviour_vectors([_sequences([3, 3], [1])], 4)).all()


def test_chunks_do_not_matter():
    rng = np.random.default_rng(0)
    users = [rng.integers(0, 20, rng.integers(1, 8)) for _ in range(60)]
    whole, single = behaviour_vectors([_sequences(*users)], 20), behaviour_vectors([_sequences(user) for user in users], 20)
    np.testing.assert_allclose(single @ single.T, whole @ whole.T, atol=1e-5)
