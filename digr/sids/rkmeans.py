"""Residual k-means: each level's codebook is a k-means of the residuals of the levels before it.

RQ-VAE uses the same residual quantisation (`quantise_residual`, `fit_codebooks`) on its latents.
Residual k-means ties or beats RQ-VAE as a source of semantic IDs in GRID (arXiv 2507.22224).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

KMEANS_ITERATIONS = 25
MAX_DISTANCES = 1 << 24
"""Most distances in memory at once; larger batches are split."""
STD_FLOOR = 0.01
"""Dimensions are divided by at least this share of the typical deviation, so that nearly constant ones stay small."""


class Quantised(NamedTuple):
    """Codes of vectors, with their codewords and residuals."""

    codes: Int64[Tensor, "N L"]
    codewords: Float[Tensor, "L N C"]
    residual: Float[Tensor, "N C"]
    """Residual after the last level."""


def nearest_code(vectors: Float[Tensor, "N C"], codebook: Float[Tensor, "K C"]) -> Int64[Tensor, " N"]:
    """Return the code of the nearest codeword, the lowest code if several are equally near.

    |v - c|^2 = |v|^2 + |c|^2 - 2 v.c, and |v|^2 is the same for every c, so one matrix product is enough.
    """
    half = codebook.square().sum(1) / 2
    parts = vectors.split(max(1, MAX_DISTANCES // len(codebook)))
    return torch.cat([torch.addmm(half, part, codebook.T, alpha=-1).argmin(1) for part in parts])


def quantise_residual(latents: Float[Tensor, "N C"], codebooks: Sequence[Tensor]) -> Quantised:
    """Quantise level by level: r_0 = z, c_l = nearest codeword to r_l, r_(l+1) = r_l - e_(c_l).

    Levels are chosen greedily, as in RQ-VAE (Lee et al. 2022, arXiv 2203.01941, eq. 2): the first code never depends
    on how many levels follow.
    """
    residual, codes, codewords = latents, [], []
    for codebook in codebooks:
        code = nearest_code(residual, codebook)
        word = codebook[code]
        residual = residual - word
        codes.append(code)
        codewords.append(word)
    return Quantised(torch.stack(codes, 1), torch.stack(codewords), residual)


def sum_codewords(codes: Int64[Tensor, "N L"], codebooks: Sequence[Tensor]) -> Float[Tensor, "N C"]:
    """Add up the codewords of each row of codes."""
    return torch.stack([codebook[codes[:, level]] for level, codebook in enumerate(codebooks)]).sum(0)


def fit_codebooks(
    latents: Float[np.ndarray, "N C"], level_sizes: Sequence[int], seed: int, report: Callable[[str], None] = lambda text: None
) -> list[Float[np.ndarray, "K C"]]:
    """Fit one codebook per level by k-means on the residuals of the levels before, with faiss on CPU or GPU.

    Args:
        latents: real vectors, at least as many as the largest level has codes.
        level_sizes: codes per level.
        seed: for the initial codewords, which are random vectors: k-means++ starts from outliers, which then get codes of
            their own and have no residual for later levels (11 % more items of a real catalogue collided).
        report: called with a line for each level.
    """
    assert len(latents) >= max(level_sizes), "fit_quantiser checks this"
    residual = np.array(latents, np.float32, order="C")
    codebooks = []
    for level, size in enumerate(level_sizes):
        kmeans = faiss.Kmeans(
            residual.shape[1],
            size,
            niter=KMEANS_ITERATIONS,
            seed=(seed + level) % 2**31,
            gpu=bool(faiss.get_num_gpus()),
            min_points_per_centroid=1,
        )
        kmeans.train(residual)
        book = np.array(kmeans.centroids, np.float32).reshape(size, -1)
        code = nearest_code(torch.from_numpy(residual), torch.from_numpy(book)).numpy()
        residual -= book[code]
        codebooks.append(book)
        report(f"level {level + 1}: {len(np.unique(code))} of {size} codes, residual {np.square(residual).mean():.4g}")
    return codebooks


def to_tensor(vectors: Float[np.ndarray, "N D"], device: torch.device) -> Float[Tensor, "N D"]:
    """Return vectors as float32 on a device; read-only arrays, such as Arrow's, are copied."""
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"])).to(device)


class RKMeans(NamedTuple):
    """A fitted residual k-means on centred and scaled vectors."""

    mean: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    codebooks: tuple[Tensor, ...]
    """Codewords of each level [K D], in the standardised space."""

    @torch.inference_mode()
    def encode(self, vectors: Float[np.ndarray, "N D"]) -> Float[Tensor, "N D"]:
        """Standardise vectors; the codewords are in this space."""
        return (to_tensor(vectors, self.mean.device) - self.mean) / self.scale

    @torch.inference_mode()
    def assign(self, vectors: Float[np.ndarray, "N D"]) -> Int32[np.ndarray, "N L"]:
        """Return the code of every level for each vector."""
        return quantise_residual(self.encode(vectors), self.codebooks).codes.to(torch.int32).cpu().numpy()

    @torch.inference_mode()
    def reconstruct(self, codes: Int32[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Decode codes into vectors of the input space."""
        index = torch.from_numpy(np.ascontiguousarray(codes, np.int64)).to(self.mean.device)
        return (sum_codewords(index, self.codebooks) * self.scale + self.mean).cpu().numpy()

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        return {"mean": self.mean, "scale": self.scale} | {
            f"codebooks.{level}": book for level, book in enumerate(self.codebooks)
        }

    def describe(self) -> dict[str, Any]:
        """Kind and sizes."""
        return {"kind": "rkmeans", "level_sizes": [len(book) for book in self.codebooks]}


def fit_rkmeans(
    vectors: Float[np.ndarray, "N D"],
    level_sizes: Sequence[int],
    seed: int,
    report: Callable[[str], None] = lambda text: None,
    device: str = "cpu",
) -> RKMeans:
    """Fit residual k-means on standardised vectors."""
    mean, scale = standardisation(vectors)
    books = fit_codebooks((vectors - mean) / scale, level_sizes, seed, report)
    tensors = [torch.from_numpy(array).to(device) for array in (mean, scale, *books)]
    return RKMeans(tensors[0], tensors[1], tuple(tensors[2:]))


def standardisation(vectors: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Return each dimension's mean and deviation.

    Without standardisation the few very large dimensions of language models' vectors would decide every code.
    """
    return vectors.mean(0, dtype=np.float64).astype(np.float32), scale_of(vectors.std(0, dtype=np.float64))


def scale_of(std: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """Return the divisor of each dimension: its deviation, or more if it is nearly constant."""
    typical = float(np.sqrt(np.square(std).mean())) or 1.0
    return np.maximum(std, STD_FLOOR * typical).astype(np.float32)
