"""RQ-VAE learns, quantises what it encodes, and lets no code die."""

import numpy as np
import pytest
import torch

from digr.config.sids import SidsConfig
from digr.sids.diagnostics import level_use, reconstruction
from digr.sids.rqvae import RQVAE, fit_rqvae, revive_dead_codes

CONFIG = SidsConfig(level_sizes=(16, 8), latent_dim=4, hidden_dims=(32,), epochs=30, batch_size=64, lr=3e-3)


def _curved(num=300, seed=0):
    """Points on a curved sheet in ten dimensions, which no linear map flattens."""
    rng = np.random.default_rng(seed)
    flat = rng.uniform(-2, 2, size=(num, 2))
    lifted = np.column_stack([flat, flat**2, np.sin(3 * flat), np.cos(2 * flat), np.prod(flat, 1), flat.sum(1) ** 3])
    return (lifted + 0.01 * rng.normal(size=lifted.shape)).astype(np.float32)


def _model():
    torch.manual_seed(0)
    model = RQVAE(input_dim=5, latent_dim=3, hidden_dims=[7], level_sizes=[4, 3])
    for book in model.codebooks:
        torch.nn.init.normal_(book)
    return model


def test_two_obvious_clusters_get_two_codes():
    vectors = np.array([[0, 0], [0, 0.1], [9, 9], [9, 9.1]], np.float32)
    config = SidsConfig(level_sizes=(2,), latent_dim=2, hidden_dims=(4,), epochs=3)
    codes = fit_rqvae(vectors, config, seed=0).assign(vectors)[:, 0]
    assert codes[0] == codes[1] != codes[2] == codes[3]


def test_the_losses_are_those_of_the_equations():
    model, inputs = _model(), torch.randn(6, 5)
    losses, codes = model(inputs)
    latents = model.encoder(inputs)
    expected, left = 0.0, latents
    for level, book in enumerate(model.codebooks):
        assert torch.equal(codes[:, level], torch.cdist(left, book).argmin(1))
        expected = expected + (left - book[codes[:, level]]).square().mean()
        left = left - book[codes[:, level]]
    torch.testing.assert_close(losses.codebook, expected)
    torch.testing.assert_close(losses.commitment, expected)
    quantised = latents - left
    torch.testing.assert_close(losses.reconstruction, (model.decoder(quantised) - inputs).square().mean())


def test_codebooks_learn_from_the_codebook_loss_only_and_the_encoder_from_the_others():
    model, inputs = _model(), torch.randn(6, 5)
    losses, codes = model(inputs)
    encoder = model.encoder.linear.weight
    books = list(model.codebooks)

    def gradients(loss, of):
        return torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)

    assert gradients(losses.codebook, [encoder]) == (None,)
    assert gradients(losses.reconstruction, books) == (None, None) == gradients(losses.commitment, books)
    assert gradients(losses.reconstruction, [encoder])[0].abs().sum() > 0
    assert gradients(losses.commitment, [encoder])[0].abs().sum() > 0
    residual = model.encoder(inputs).detach()
    first = books[0].detach()
    pull = torch.zeros_like(first).index_add(0, codes[:, 0], 2 * (first[codes[:, 0]] - residual) / residual.numel())
    torch.testing.assert_close(gradients(losses.codebook, books)[0], pull)


def test_the_decoders_gradient_passes_straight_through():
    model, inputs = _model(), torch.randn(6, 5)
    latents = model.encoder(inputs).detach()
    words = sum(book[code] for book, code in zip(model.codebooks, model(inputs)[1].T, strict=True)).detach().requires_grad_()
    reconstruction_loss = (model.decoder(words) - inputs).square().mean()
    at_words = torch.autograd.grad(reconstruction_loss, words)[0]
    moved = latents.requires_grad_()
    through = torch.autograd.grad((model.encoder(inputs) * at_words).sum(), model.encoder.linear.weight)[0]
    found = torch.autograd.grad(model(inputs)[0].reconstruction, model.encoder.linear.weight)[0]
    torch.testing.assert_close(found, through)
    assert moved.grad is None


def test_an_unused_code_moves_onto_a_residual_and_used_codes_stay():
    book = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    residuals = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    revived, dead = revive_dead_codes(book, torch.tensor([3, 0]), residuals, torch.Generator().manual_seed(0))
    assert dead.tolist() == [1] and revived.tolist() == [[0.0, 0.0], [3.0, 4.0]]
    assert book[1].tolist() == [50.0, 50.0]


def test_no_more_codes_are_revived_than_residuals_are_badly_served():
    book = torch.tensor([[0.0], [50.0], [60.0], [70.0]])
    revived, dead = revive_dead_codes(
        book, torch.tensor([3, 0, 0, 0]), torch.tensor([[0.0], [0.0], [1.0]]), torch.Generator().manual_seed(0)
    )
    assert dead.tolist() == [1] and revived[:, 0].tolist() == [0.0, 1.0, 60.0, 70.0]


def test_training_reconstructs_better_than_its_linear_start_and_leaves_no_code_dead():
    vectors = _curved()
    start = fit_rqvae(vectors, CONFIG.model_copy(update={"epochs": 1, "lr": 1e-9}), seed=0)
    trained = fit_rqvae(vectors, CONFIG, seed=0)
    before, after = (reconstruction(model, vectors, model.assign(vectors))[1] for model in (start, trained))
    assert after > before + 0.05
    codes = trained.assign(vectors)
    assert all(level_use(codes[:, level], size).usage_rate >= 0.95 for level, size in enumerate(CONFIG.level_sizes))


def test_codebooks_thrown_far_away_are_revived_while_training(monkeypatch):
    vectors = _curved()

    def far_away(latents, sizes, seed):
        return [np.vstack([np.zeros((1, 4)), np.full((size - 1, 4), 1e3)]).astype(np.float32) for size in sizes]

    monkeypatch.setattr("digr.sids.rqvae.fit_codebooks", far_away)
    codes = fit_rqvae(vectors, CONFIG, seed=0).assign(vectors)
    assert level_use(codes[:, 0], 16).usage_rate >= 0.95


def test_a_dimension_that_never_varies_is_harmless():
    vectors = _curved()
    vectors[:, 3] = 7.0
    model = fit_rqvae(vectors, CONFIG, seed=0)
    assert np.isfinite(model.reconstruct(model.assign(vectors))).all()
    np.testing.assert_allclose(model.reconstruct(model.assign(vectors))[:, 3], 7.0, atol=0.1)


def test_a_latent_wider_than_the_input_works():
    config = CONFIG.model_copy(update={"latent_dim": 16, "epochs": 2})
    assert fit_rqvae(_curved(), config, seed=0).codebooks[0].shape == (16, 16)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_global_seed_does_not_matter(seed):
    torch.manual_seed(seed)
    codes = fit_rqvae(_curved(), CONFIG, seed=5).assign(_curved(seed=1))
    torch.manual_seed(seed + 100)
    np.testing.assert_array_equal(codes, fit_rqvae(_curved(), CONFIG, seed=5).assign(_curved(seed=1)))
