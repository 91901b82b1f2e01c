"""RQ-VAE: an autoencoder whose latent is quantised by residual codebooks that are trained with it.

Residual quantisation after Lee et al. 2022 (arXiv 2203.01941), used for semantic IDs as in TIGER (arXiv 2305.05065,
section 3.1): L = |x - x'|^2 + sum over levels of |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2, every square a mean over its
elements. Against collapse: inputs are standardised, the autoencoder starts from their principal components, the codebooks
start from k-means of these latents, and unused codes are moved to residuals with large errors.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from digr.config.sids import SidsConfig
from digr.sids.peers import Peers
from digr.sids.rkmeans import fit_codebooks, quantise_residual, scale_of, sum_codewords, to_tensor

REVIVE_EVERY_EPOCHS = 5
MAX_REVIVE_ITEMS = 1 << 16
"""Items that are assigned to find unused codes."""
MAX_START_ITEMS = 1 << 20
"""Items whose latents initialise the codebooks; workers exchange them."""
REVIVE_UNTIL_SHARE = 0.9
"""No code is moved in the last epochs, so that every codeword converges before training ends."""
WEIGHT_DECAY = 1e-4
MAX_GRAD_NORM = 1.0
ALONE = Peers()


class Losses(NamedTuple):
    """Terms of the loss of a batch, each a scalar."""

    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor


class Coder(nn.Module):
    """A linear map plus a multi-layer perceptron that starts at zero, so that training starts at the linear map."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.perceptron = nn.Sequential(*layers[:-1])
        self.linear = nn.Linear(widths[0], widths[-1], bias=False)

    def forward(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Add both."""
        return self.linear(inputs) + self.perceptron(inputs)


class RQVAE(nn.Module):
    """Encoder, residual codebooks and decoder, with the mean and deviation of the inputs."""

    mean: Tensor
    scale: Tensor

    def __init__(self, input_dim: int, latent_dim: int, hidden_dims: Sequence[int], level_sizes: Sequence[int]):
        super().__init__()
        self.sizes: dict[str, Any] = {"input_dim": input_dim, "latent_dim": latent_dim}
        self.sizes |= {"hidden_dims": list(hidden_dims), "level_sizes": list(level_sizes)}
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))
        self.encoder = Coder([input_dim, *hidden_dims, latent_dim])
        self.decoder = Coder([latent_dim, *reversed(hidden_dims), input_dim])
        self.books = nn.ParameterList(torch.zeros(size, latent_dim) for size in level_sizes)

    @property
    def codebooks(self) -> list[Tensor]:
        """Codewords of each level, [K C]."""
        return list(self.books)

    def forward(self, inputs: Float[Tensor, "B D"]) -> tuple[Losses, Int64[Tensor, "B L"]]:
        """Return the loss terms and the codes of standardised inputs.

        The decoder reads the quantised latent; its gradient goes to the encoder by the straight-through estimator.
        """
        latents = self.encoder(inputs)
        found = quantise_residual(latents.detach(), self.codebooks)
        words = torch.stack([book[code] for book, code in zip(self.codebooks, found.codes.T, strict=True)])
        # r_l = z - (e_1 + ... + e_(l-1)): gradients reach the encoder through z only, and each codeword through its own term
        before = torch.cat([torch.zeros_like(words[:1]), words.detach().cumsum(0)[:-1]])
        residuals = latents - before
        quantised = latents + (words.detach().sum(0) - latents.detach())
        losses = Losses(
            reconstruction=F.mse_loss(self.decoder(quantised), inputs),
            codebook=(residuals.detach() - words).square().mean((1, 2)).sum(),
            commitment=(residuals - words.detach()).square().mean((1, 2)).sum(),
        )
        return losses, found.codes

    @torch.inference_mode()
    def encode(self, vectors: Float[np.ndarray, "N D"]) -> Float[Tensor, "N C"]:
        """Return the latents that are quantised."""
        return self.encoder((to_tensor(vectors, self.mean.device) - self.mean) / self.scale)

    @torch.inference_mode()
    def assign(self, vectors: Float[np.ndarray, "N D"]) -> Int32[np.ndarray, "N L"]:
        """Return the code of every level for each vector."""
        return quantise_residual(self.encode(vectors), self.codebooks).codes.to(torch.int32).cpu().numpy()

    @torch.inference_mode()
    def reconstruct(self, codes: Int32[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Decode the sum of the codewords."""
        index = torch.from_numpy(np.ascontiguousarray(codes, np.int64)).to(self.mean.device)
        return (self.decoder(sum_codewords(index, self.codebooks)) * self.scale + self.mean).cpu().numpy()

    def state(self) -> dict[str, Tensor]:
        """Return all tensors."""
        return dict(self.state_dict())

    def describe(self) -> dict[str, Any]:
        """Kind and sizes."""
        return {"kind": "rqvae", **self.sizes}


def revive_dead_codes(
    codebook: Float[Tensor, "K C"], counts: Int64[Tensor, " K"], residuals: Float[Tensor, "N C"], generator: torch.Generator
) -> tuple[Float[Tensor, "K C"], Int64[Tensor, " R"]]:
    """Return the codebook with each unused code moved to a residual of large error, and the codes that moved.

    Residuals are drawn without replacement, with probability proportional to their squared distance to their codeword (as
    k-means++ draws its centres); a residual without error is never drawn.

    Args:
        codebook: codewords of one level.
        counts: number of residuals that have each code.
        residuals: the inputs of the level.
        generator: for the draw, on the codebook's device.
    """
    dead = torch.nonzero(counts == 0).squeeze(1)
    if not len(dead):
        return codebook, dead
    error = quantise_residual(residuals, [codebook]).residual.square().sum(1)
    dead = dead[: int((error > 0).sum())]
    if not len(dead):
        return codebook, dead
    revived = codebook.clone()
    revived[dead] = residuals[torch.multinomial(error, len(dead), replacement=False, generator=generator)]
    return revived, dead


def fit_rqvae(
    vectors: Float[np.ndarray, "N D"],
    config: SidsConfig,
    seed: int,
    report: Callable[[str], None] = lambda text: None,
    *,
    device: str = "cpu",
    watch: Callable[["RQVAE", int], None] | None = None,
    peers: Peers = ALONE,
) -> RQVAE:
    """Train an RQ-VAE on the vectors of some items; return the frozen model, which is equal on all workers.

    Workers share each batch: `config.batch_size` is the total per step. A worker with fewer vectors than the others sees
    some of them twice in an epoch.

    Args:
        vectors: vectors of this worker; finite, and over all workers at least as many as the largest level has codes.
        config: level sizes, widths, beta, learning rate, epochs and batch size.
        seed: for weights, batches, initial codewords and revived codes.
        report: called with ten lines of progress.
        device: device of training and of the returned model.
        watch: called ten times during training with the current model, which it must not change, and the epochs done.
        peers: the workers that fit together; each has different vectors and the same seed.
    """
    generator = torch.Generator(device).manual_seed(seed)
    model = _start(vectors, config, seed, torch.device(device), peers)
    inputs = (to_tensor(vectors, torch.device(device)) - model.mean) / model.scale
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs, eta_min=config.lr / 50)
    for epoch in range(config.epochs):
        losses = _train_epoch(model, inputs, optimizer, config, generator=generator, peers=peers)
        schedule.step()
        revived = 0
        if epoch % REVIVE_EVERY_EPOCHS == 0 and epoch < config.epochs * REVIVE_UNTIL_SHARE:
            revived = _revive(model, inputs, optimizer, generator, peers)
        if epoch % math.ceil(config.epochs / 10) == 0 or epoch == config.epochs - 1:
            report(
                f"epoch {epoch + 1}/{config.epochs}: reconstruction {losses.reconstruction:.4f}, "
                f"codebook {losses.codebook:.4f}, codes revived {revived}"
            )
            if watch and epoch < config.epochs - 1:
                watch(model, epoch + 1)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _start(vectors: np.ndarray, config: SidsConfig, seed: int, device: torch.device, peers: Peers) -> RQVAE:
    """Make a model that encodes to principal components, decodes from them, and quantises them by residual k-means."""
    model = RQVAE(vectors.shape[1], config.latent_dim, config.hidden_dims, config.sizes)
    generator = torch.Generator().manual_seed(seed)
    for coder in (model.encoder, model.decoder):
        layers = [layer for layer in coder.perceptron if isinstance(layer, nn.Linear)]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(layers[-1].weight)

    def mean_of(rows: np.ndarray) -> np.ndarray:
        """Sum over the rows of all workers, in numbers of the given type, divided by their number."""
        return peers.total(torch.from_numpy(rows).to(device)).cpu().numpy() / num

    num = int(peers.total(torch.tensor(len(vectors), device=device)))
    mean = mean_of(vectors.sum(0, dtype=np.float64))
    scale = scale_of(np.sqrt(mean_of(np.square(vectors - mean).sum(0))))
    inputs = (vectors - mean.astype(np.float32)) / scale
    model.mean.copy_(torch.from_numpy(mean))
    model.scale.copy_(torch.from_numpy(scale))
    values, components = np.linalg.eigh(mean_of(inputs.T @ inputs))
    kept = min(config.latent_dim, inputs.shape[1])
    # one factor for all components keeps the distances of the inputs
    factor = float(np.sqrt(max(values[-kept:].mean(), 0))) or 1.0
    chosen = torch.from_numpy(np.ascontiguousarray(components[:, ::-1][:, :kept]))
    nn.init.zeros_(model.encoder.linear.weight)[:kept] = chosen.T / factor
    nn.init.zeros_(model.decoder.linear.weight)[:, :kept] = chosen * factor
    model = model.to(device)
    peers.follow_first(model)
    latents = peers.gather(model.encode(vectors[: MAX_START_ITEMS // peers.size])).cpu().numpy()
    for book, start in zip(model.codebooks, fit_codebooks(latents, config.sizes, seed), strict=True):
        book.copy_(torch.from_numpy(start))
    peers.follow_first(model)
    return model


def _train_epoch(
    model: RQVAE,
    inputs: Tensor,
    optimizer: torch.optim.Optimizer,
    config: SidsConfig,
    *,
    generator: torch.Generator,
    peers: Peers,
) -> Losses:
    """Train one epoch on shuffled batches; return the mean of each loss."""
    total = torch.zeros(3, device=inputs.device)
    order = _shuffled(inputs, generator, peers)
    for rows in order.split(max(1, config.batch_size // peers.size)):
        losses = model(inputs[rows])[0]
        optimizer.zero_grad(set_to_none=True)
        (losses.reconstruction + losses.codebook + config.commitment * losses.commitment).backward()
        peers.average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        total += torch.stack(losses).detach() * len(rows)
    return Losses(*(peers.total(total) / (len(order) * peers.size)))


def _shuffled(inputs: Tensor, generator: torch.Generator, peers: Peers) -> Int64[Tensor, " N"]:
    """Return the worker's rows in random order, repeated up to the largest worker's number, so that all take the same steps."""
    longest = peers.longest(len(inputs), inputs.device)
    return torch.randperm(longest, generator=generator, device=inputs.device) % len(inputs)


@torch.no_grad()
def _revive(model: RQVAE, inputs: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator, peers: Peers) -> int:
    """Move the unused codes of every level and reset their optimiser state; return how many moved."""
    rows = _shuffled(inputs, generator, peers)[: MAX_REVIVE_ITEMS // peers.size]
    residual, moved = peers.gather(model.encoder(inputs[rows])), 0
    for book in model.codebooks:
        found = quantise_residual(residual, [book])
        revived, dead = revive_dead_codes(book, torch.bincount(found.codes[:, 0], minlength=len(book)), residual, generator)
        book.copy_(revived)
        for value in optimizer.state[book].values():
            if value.shape == book.shape:
                value[dead] = 0
        residual, moved = found.residual, moved + len(dead)
    return moved
