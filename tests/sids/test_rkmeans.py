"""Residual k-means picks nearest codewords, level by level."""

import numpy as np
import pytest
import torch

from digr.config.sids import SidsConfig
from digr.sids.fitting import fit_quantiser, load_quantiser, sample_rows, save_quantiser, take_rows
from digr.sids.rkmeans import fit_codebooks, fit_rkmeans, nearest_code, quantise_residual, sum_codewords


def _vectors(num=200, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def test_two_obvious_clusters_get_two_codes():
    vectors = np.array([[0, 0], [0, 0.1], [9, 9], [9, 9.1]], np.float32)
    codes = fit_rkmeans(vectors, [2], seed=0).assign(vectors)[:, 0]
    assert codes[0] == codes[1] != codes[2] == codes[3]


def test_each_level_takes_the_nearest_codeword_of_what_is_left():
    quantiser = fit_rkmeans(_vectors(), [8, 4], seed=0)
    left = quantiser.encode(_vectors(seed=1)).numpy()
    codes = quantiser.assign(_vectors(seed=1))
    for level, book in enumerate(quantiser.codebooks):
        distances = ((left[:, None] - book.numpy()[None]) ** 2).sum(-1)
        np.testing.assert_array_equal(codes[:, level], distances.argmin(1))
        left = left - book.numpy()[codes[:, level]]


def test_reconstruction_is_the_sum_of_codewords_in_the_input_space():
    quantiser = fit_rkmeans(_vectors(), [8, 4], seed=0)
    codes = np.array([[3, 1], [7, 0]], np.int32)
    words = [quantiser.codebooks[0][3] + quantiser.codebooks[1][1], quantiser.codebooks[0][7] + quantiser.codebooks[1][0]]
    expected = torch.stack(words) * quantiser.scale + quantiser.mean
    np.testing.assert_allclose(quantiser.reconstruct(codes), expected.numpy(), rtol=1e-5)


def test_residual_and_codewords_add_up_to_the_latent():
    latents = torch.from_numpy(_vectors())
    books = [torch.from_numpy(_vectors(5, seed=level)) for level in range(3)]
    found = quantise_residual(latents, books)
    torch.testing.assert_close(found.codewords.sum(0) + found.residual, latents)
    torch.testing.assert_close(sum_codewords(found.codes, books), found.codewords.sum(0))


def test_an_exact_tie_goes_to_the_lowest_code():
    assert nearest_code(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])).tolist() == [0]


def test_distances_cut_into_parts_change_nothing(monkeypatch):
    vectors, book = torch.from_numpy(_vectors(50)), torch.from_numpy(_vectors(7, seed=1))
    whole = nearest_code(vectors, book)
    monkeypatch.setattr("digr.sids.rkmeans.MAX_DISTANCES", 20)
    assert torch.equal(nearest_code(vectors, book), whole)


def test_every_level_adds_detail():
    reports = []
    fit_codebooks(_vectors(), [16, 16, 16], 0, reports.append)
    left = [float(text.rsplit(" ", 1)[1]) for text in reports]
    assert left[0] > left[1] > left[2] and "16 of 16 codes" in reports[0]


@pytest.mark.parametrize("kind", ["rkmeans", "rqvae"])
def test_the_same_seed_gives_the_same_codes_and_a_saved_quantiser_too(tmp_path, kind):
    config = SidsConfig(quantiser=kind, level_sizes=(8, 4), latent_dim=4, hidden_dims=(8,), epochs=5)
    first, again = (fit_quantiser(_vectors(), config, seed=3) for _ in range(2))
    new = _vectors(seed=9)
    np.testing.assert_array_equal(first.assign(new), again.assign(new))
    save_quantiser(first, tmp_path)
    loaded = load_quantiser(tmp_path)
    np.testing.assert_array_equal(loaded.assign(new), first.assign(new))
    np.testing.assert_array_equal(loaded.reconstruct(first.assign(new)), first.reconstruct(first.assign(new)))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_level_larger_than_the_catalogue_is_an_error():
    with pytest.raises(ValueError, match=r"sids\.level_sizes: a level has 16 codes but there are only 10 items"):
        fit_quantiser(_vectors(10), SidsConfig(quantiser="rkmeans", level_sizes=(16,)), seed=0)


def test_a_vector_that_is_not_finite_is_an_error():
    vectors = _vectors()
    vectors[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 200 vectors are not finite"):
        fit_quantiser(vectors, SidsConfig(quantiser="rkmeans", level_sizes=(4,)), seed=0)


def test_a_folder_without_a_quantiser_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no quantiser\.json"):
        load_quantiser(tmp_path)


def test_a_sample_has_no_row_twice_and_is_the_same_for_a_seed():
    rows = sample_rows(1000, 100, seed=1)
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_rows(1000, 100, seed=1))
    np.testing.assert_array_equal(sample_rows(5, 100, seed=1), np.arange(5))


def test_rows_are_taken_from_the_batch_they_are_in():
    stream = np.arange(20, dtype=np.float32).reshape(10, 2)
    rows = np.array([0, 3, 4, 9])
    np.testing.assert_array_equal(take_rows(iter([stream[:4], stream[4:5], stream[5:]]), rows), stream[rows])


def test_a_stream_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match="found 4 rows, expected more"):
        take_rows(iter([np.zeros((4, 2), np.float32)]), np.array([0, 4]))
