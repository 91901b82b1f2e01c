"""One interface for the quantisers: fit the configured one, save it, load it."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from digr.config.sids import SidsConfig
from digr.sids.peers import Peers
from digr.sids.rkmeans import RKMeans, fit_rkmeans
from digr.sids.rqvae import ALONE, RQVAE, fit_rqvae

TENSORS, KIND = "quantiser.safetensors", "quantiser.json"


class Quantiser(Protocol):
    """Maps vectors to codes and back; does not change after fitting."""

    @property
    def codebooks(self) -> Sequence[Tensor]:
        """Return the codewords of each level, [K C], in the space of `encode`."""
        ...

    def encode(self, vectors: Float[np.ndarray, "N D"]) -> Float[Tensor, "N C"]:
        """Map vectors to the space of the codewords."""
        ...

    def assign(self, vectors: Float[np.ndarray, "N D"]) -> Int32[np.ndarray, "N L"]:
        """Return each vector's codes: the nearest codeword, level by level."""
        ...

    def reconstruct(self, codes: Int32[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Decode codes into vectors of the input space."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all of its tensors."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return its kind and sizes, as JSON values."""
        ...


def sample_rows(num_items: int, max_items: int, seed: int) -> Int64[np.ndarray, " N"]:
    """Draw at most `max_items` of `num_items` row numbers without replacement, in ascending order."""
    if num_items <= max_items:
        return np.arange(num_items)
    return np.sort(np.random.default_rng(seed).choice(num_items, max_items, replace=False))


def take_rows(batches: Iterable[Float[np.ndarray, "B D"]], rows: Int64[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
    """Take some rows, given in ascending order, out of a stream.

    Raises:
        ValueError: the stream ends before the last row.
    """
    parts, start = [], 0
    for batch in batches:
        parts.append(batch[rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(batch))] - start])
        start += len(batch)
    if not len(rows) or start <= rows[-1]:
        raise ValueError(f"item_embeddings: found {start} rows, expected more ({len(rows)} wanted); run jobs.embed_items again")
    return np.concatenate(parts)


def fit_quantiser(
    vectors: Float[np.ndarray, "N D"],
    config: SidsConfig,
    seed: int,
    report: Callable[[str], None] = lambda text: None,
    *,
    device: str = "cpu",
    watch: Callable[[Quantiser, int], None] | None = None,
    peers: Peers = ALONE,
) -> Quantiser:
    """Fit the configured quantiser on some items' vectors.

    Args:
        vectors: a sample of the catalogue (`sample_rows`, `take_rows`).
        config: quantiser, level sizes and training settings.
        seed: for every random choice.
        report: called with each line of progress.
        watch: called ten times during training of an RQ-VAE, with the current model and the epochs done.
        peers: workers that fit an RQ-VAE together, each on different vectors; k-means uses one worker.

    Raises:
        ValueError: fewer items than codes of a level, or a vector that is not finite.
    """
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(1)).sum())
        raise ValueError(f"item_embeddings: {bad} of {len(vectors)} vectors are not finite; run jobs.embed_items again")
    num_items = int(peers.total(torch.tensor(len(vectors), device=device)))
    if num_items < max(config.sizes):
        raise ValueError(
            f"sids.level_sizes: a level has {max(config.sizes)} codes but there are only {num_items} items to fit them; use "
            f'levels of at most {num_items} codes, or set sids.level_sizes = "auto"'
        )
    if config.quantiser == "rkmeans":
        return fit_rkmeans(vectors, config.sizes, seed, report, device)
    return fit_rqvae(vectors, config, seed, report, device=device, watch=watch, peers=peers)


def save_quantiser(quantiser: Quantiser, folder: Path) -> None:
    """Write the quantiser into a local folder: tensors as safetensors, kind and sizes as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in quantiser.state().items()}, folder / TENSORS)
    (folder / KIND).write_text(json.dumps(quantiser.describe(), indent=2))


def load_quantiser(folder: Path, device: str = "cpu") -> Quantiser:
    """Read a quantiser that `save_quantiser` wrote.

    Raises:
        ValueError: the folder has no quantiser, or one of an unknown kind.
    """
    if not (folder / KIND).is_file():
        raise ValueError(f"{folder}: no {KIND}; give the folder of a `quantiser` artifact")
    described, state = json.loads((folder / KIND).read_text()), load_file(folder / TENSORS, device=device)
    kind = described.pop("kind", None)
    if kind == "rkmeans":
        levels = len(described["level_sizes"])
        return RKMeans(state["mean"], state["scale"], tuple(state[f"codebooks.{level}"] for level in range(levels)))
    if kind == "rqvae":
        model = RQVAE(**described).to(device)
        model.load_state_dict(state)
        return model.eval().requires_grad_(False)
    raise ValueError(f"{folder / KIND}: unknown kind {kind!r}; expected rqvae or rkmeans")
