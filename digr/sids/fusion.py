"""Fuse the text and image vector of an item into one, by linear maps that are fitted on the catalogue.

A missing image vector is predicted from the text vector, by a ridge regression fitted on the items that have both. The two
maps are the linear autoencoder with the least squared error over both kinds of vectors. It has a closed form: their joint
principal components.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

FUSION = "fusion.safetensors"
RIDGE = 0.1
"""Share of the text's mean variance added to each dimension's before the regression."""


class Fusion(NamedTuple):
    """Fitted linear maps."""

    text_mean: Float[np.ndarray, " D"]
    image_mean: Float[np.ndarray, " E"]
    image_of_text: Float[np.ndarray, "D E"]
    """Regression from centred text vectors to centred image vectors."""
    text_map: Float[np.ndarray, "D C"]
    image_map: Float[np.ndarray, "E C"]

    def __call__(self, text: Float[np.ndarray, "N D"], image: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N C"]:
        """Fuse vectors; rows of `image` with a value that is not finite are missing images."""
        text, image = self._centred(text, image)
        return (text @ self.text_map + image @ self.image_map).astype(np.float32)

    def _centred(self, text: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        text = text - self.text_mean
        return text, np.where(np.isfinite(image).all(1, keepdims=True), image - self.image_mean, text @ self.image_of_text)


def fit_fusion(text: Float[np.ndarray, "N D"], image: Float[np.ndarray, "N E"], image_weight: float) -> Fusion:
    """Fit the regression and the joint components; the fused vector has the width of a text vector.

    Args:
        text: text vectors of some items.
        image: image vectors of the same items; rows with values that are not finite are missing images.
        image_weight: the images' share of the total variance before the components are taken, in (0, 1).

    Raises:
        ValueError: fewer than two of the items have an image.
    """
    has = np.isfinite(image).all(1)
    if has.sum() < 2:
        raise ValueError(
            f"sids.image_weight: {int(has.sum())} of {len(image)} items have an image vector; set embeddings.image_encoder and "
            f"run jobs.embed_items again, or set sids.image_weight to 0"
        )
    text_mean, image_mean = text.mean(0, dtype=np.float64), image[has].mean(0, dtype=np.float64)
    known = text[has] - text_mean
    covariance = known.T @ known
    covariance += np.eye(len(covariance)) * RIDGE * np.trace(covariance) / len(covariance)
    regression = np.linalg.solve(covariance, known.T @ (image[has] - image_mean))
    blank = Fusion(text_mean, image_mean, regression, np.empty((0, 0)), np.empty((0, 0)))
    parts = blank._centred(text, image)
    shares = (1 - image_weight, image_weight)
    scales = [
        np.sqrt(share / max(float(np.square(part).sum(1).mean()), 1e-30)) for share, part in zip(shares, parts, strict=True)
    ]
    joint = np.concatenate([part * scale for part, scale in zip(parts, scales, strict=True)], axis=1)
    components = np.linalg.eigh(joint.T @ joint)[1][:, ::-1][:, : text.shape[1]]
    maps = [components[: text.shape[1]] * scales[0], components[text.shape[1] :] * scales[1]]
    return Fusion(*(np.ascontiguousarray(array, np.float32) for array in (text_mean, image_mean, regression, *maps)))


def save_fusion(fusion: Fusion, folder: Path) -> None:
    """Write the maps beside the quantiser."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(fusion._asdict(), folder / FUSION)


def load_fusion(folder: Path) -> Fusion | None:
    """Read what `save_fusion` wrote; None if the quantiser uses no images."""
    return Fusion(**load_file(folder / FUSION)) if (folder / FUSION).is_file() else None
