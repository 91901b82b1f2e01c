"""Our RQ-VAE against a plain PyTorch loop with MiniOneRec's published settings, on the same item vectors.

The plain loop has full batches, 10,000 epochs, AdamW at 1e-3, beta .25, a latent of 32 and codebooks that start as k-means of
the first latents. It also gets what the published one lacks: standardised inputs and our narrow hidden layer, so its epochs
cost as much as ours. Every 100 epochs it may stop if it is as good as ours in both reconstruction (R2 of the nearest codes)
and collisions. Each has one thread and is timed in processor seconds.

The vectors are `item_embeddings` of the run that the environment variable DIGR_RUN names, or else random clustered ones
of Industrial's shape.
"""

import os
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import Bar, Measurement, main
from benchmarks.sid_assign import clustered
from digr import artifacts
from digr.artifacts import Store
from digr.config.sids import SidsConfig
from digr.sids.building import vector_batches
from digr.sids.diagnostics import collision_rate
from digr.sids.fitting import fit_quantiser
from digr.sids.rkmeans import fit_codebooks, quantise_residual, standardisation

BAR = Bar(
    full=10.0,
    quick=10.0,
    better="at_least",
    quick_reason="processor seconds of fifty epochs of the plain model, extrapolated to all of its epochs",
)
PEER_EPOCHS, PEER_LR, LOOK_EVERY = 10_000, 1e-3, 100
NUM_ITEMS = 3686


class PlainRQVAE(nn.Module):
    """The textbook model: two perceptrons and codebooks trained by their gradients."""

    def __init__(self, dim: int, config: SidsConfig):
        super().__init__()
        hidden = config.hidden_dims[0]
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, config.latent_dim))
        self.decoder = nn.Sequential(nn.Linear(config.latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.books = nn.ParameterList(torch.zeros(size, config.latent_dim) for size in config.sizes)

    def forward(self, inputs: torch.Tensor, commitment: float) -> torch.Tensor:
        """Return the loss."""
        latents = self.encoder(inputs)
        residual, words, loss = latents, torch.zeros_like(latents), torch.zeros(())
        for book in self.books:
            word = book[torch.cdist(residual, book).argmin(1)]
            loss = loss + F.mse_loss(word, residual.detach()) + commitment * F.mse_loss(residual, word.detach())
            residual, words = residual - word.detach(), words + word
        decoded = self.decoder(latents + (words - latents).detach())
        return F.mse_loss(decoded, inputs) + loss


@torch.inference_mode()
def quality(model: PlainRQVAE, inputs: torch.Tensor) -> tuple[float, float, float]:
    """R2 in the standardised space, collision rate, and the least share of codes that a level uses."""
    found = quantise_residual(model.encoder(inputs), list(model.books))
    error = F.mse_loss(model.decoder(found.codewords.sum(0)), inputs)
    used = [len(found.codes[:, level].unique()) / len(book) for level, book in enumerate(model.books)]
    return float(1 - error / inputs.var(0, correction=0).mean()), collision_rate(found.codes.numpy().astype(np.int32)), min(used)


def fit_plain(inputs: torch.Tensor, config: SidsConfig, epochs: int, goal: tuple[float, float]) -> dict[str, float]:
    """Train until as good as the goal (R2, collision rate) or to the end."""
    torch.manual_seed(0)
    start = time.process_time()
    model = PlainRQVAE(inputs.shape[1], config)
    with torch.no_grad():
        for book, first in zip(model.books, fit_codebooks(model.encoder(inputs).numpy(), config.sizes, 0), strict=True):
            book.copy_(torch.from_numpy(first))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEER_LR)
    looking, reached = 0.0, 0
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad(set_to_none=True)
        model(inputs, config.commitment).backward()
        optimizer.step()
        if epoch % LOOK_EVERY == 0 or epoch == epochs:
            look = time.process_time()
            r2, collisions, usage = quality(model, inputs)
            looking += time.process_time() - look
            if r2 >= goal[0] and collisions <= goal[1]:
                reached = epoch
                break
    seconds = time.process_time() - start - looking
    return {"epochs": epoch, "reached": reached, "seconds": seconds, "r2": r2, "collisions": collisions, "usage": usage}


def item_vectors(quick: bool) -> tuple[np.ndarray, str]:
    """Read the run's vectors, or draw some."""
    if run := os.environ.get("DIGR_RUN"):
        artifacts.require(Store(run), "item_embeddings")
        return np.concatenate(list(vector_batches(Store(run)))), "item_embeddings of a run"
    return clustered(600 if quick else NUM_ITEMS), "random clustered vectors"


def measure(quick: bool) -> Measurement:
    """Fit ours, then the plain one up to our quality."""
    torch.set_num_threads(1)
    vectors, source = item_vectors(quick)
    config = SidsConfig(level_sizes=(32, 32, 32), epochs=20) if quick else SidsConfig()
    start = time.process_time()
    ours = fit_quantiser(vectors, config, seed=0)
    seconds = time.process_time() - start
    codes = ours.assign(vectors)
    mean, scale = standardisation(vectors)
    inputs = torch.from_numpy((vectors - mean) / scale)
    rebuilt = torch.from_numpy((ours.reconstruct(codes) - mean) / scale)
    r2 = float(1 - F.mse_loss(rebuilt, inputs) / inputs.var(0, correction=0).mean())
    collisions = collision_rate(codes)
    epochs = 50 if quick else PEER_EPOCHS
    peer = fit_plain(inputs, config, epochs, (r2, collisions))
    figures = {
        "vectors": source,
        "items": len(vectors),
        "ours_epochs": config.epochs,
        "ours_cpu_seconds": round(seconds, 2),
        "ours_r2": round(r2, 4),
        "ours_raw_collision_rate": round(collisions, 4),
        "ours_least_usage_rate": round(
            min(len(np.unique(column)) / size for column, size in zip(codes.T, config.sizes, strict=True)), 4
        ),
        "plain_epochs": peer["epochs"],
        "plain_as_good_at_epoch": peer["reached"] or "never",
        "plain_cpu_seconds": round(peer["seconds"], 1),
        "plain_r2": round(peer["r2"], 4),
        "plain_raw_collision_rate": round(peer["collisions"], 4),
        "plain_least_usage_rate": round(peer["usage"], 4),
        "ratio_is": "plain seconds over ours" + (f", extrapolated from {epochs} to {PEER_EPOCHS} epochs" if quick else ""),
    }
    extrapolated = PEER_EPOCHS / epochs if quick and not peer["reached"] else 1
    return Measurement(figures, ratio=peer["seconds"] * extrapolated / seconds)


if __name__ == "__main__":
    main(measure, BAR)
