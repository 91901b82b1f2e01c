"""Fuse an item's text vector with further views of it, by linear maps that are fitted on the catalogue.

Views are the item's image and its behaviour (`sids.behaviour`). A missing view is predicted from the text vector, by a ridge
regression fitted on the items that have both. The maps keep the joint principal components of the text and all views, each
scaled to its share of the variance. The components are then turned so that every dimension has about the same variance:
quantisers standardise their input, and would otherwise make the weakest component as important as the strongest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from digr.sids.rkmeans import standardisation

FUSION = "fusion.safetensors"
RIDGE = 0.1
"""Share of the text's mean variance added to each dimension's before the regression."""


class View(NamedTuple):
    """Fitted linear maps of one view."""

    mean: Float[np.ndarray, " E"]
    of_text: Float[np.ndarray, "D E"]
    """Regression from centred text vectors to centred vectors of the view."""
    map: Float[np.ndarray, "E C"]

    def centred(self, text: Float[np.ndarray, "N D"], vectors: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
        """Centre vectors; rows with a value that is not finite are predicted from centred texts."""
        return np.where(np.isfinite(vectors).all(1, keepdims=True), vectors - self.mean, text @ self.of_text)


class Fusion(NamedTuple):
    """Fitted linear maps."""

    text_mean: Float[np.ndarray, " D"]
    text_map: Float[np.ndarray, "D C"]
    views: dict[str, View]
    """The fused views, by name."""

    def __call__(
        self, text: Float[np.ndarray, "N D"], views: Mapping[str, Float[np.ndarray, "N E"]] | None = None
    ) -> Float[np.ndarray, "N C"]:
        """Fuse vectors; a view that is not given, and rows with a value that is not finite, are missing."""
        text = text - self.text_mean
        fused = text @ self.text_map
        for name, view in self.views.items():
            given = views[name] if views and name in views else np.full((len(text), len(view.mean)), np.nan, np.float32)
            fused += view.centred(text, given) @ view.map
        return fused.astype(np.float32)


def fit_fusion(
    text: Float[np.ndarray, "N D"], views: Mapping[str, Float[np.ndarray, "N E"]], weights: Mapping[str, float]
) -> Fusion:
    """Fit regressions and joint components; the fused vector has the width of a text vector.

    Args:
        text: text vectors of some items.
        views: vectors of the same items; rows with values that are not finite are missing.
        weights: each view's share of the total variance before the components are taken; together below 1.

    Raises:
        ValueError: fewer than two of the items have a view.
    """
    text_mean, text_scale = standardisation(text)
    known = ((text - text_mean) / text_scale).astype(np.float64)
    fitted = {name: _fit_view(name, known, vectors) for name, vectors in views.items()}
    parts = [known, *(view.centred(known, views[name]) for name, view in fitted.items())]
    shares = [1 - sum(weights[name] for name in views), *(weights[name] for name in views)]
    scales = [
        np.sqrt(share / max(float(np.square(part).sum(1).mean()), 1e-30)) for share, part in zip(shares, parts, strict=True)
    ]
    joint = np.concatenate([part * scale for part, scale in zip(parts, scales, strict=True)], axis=1)
    components = np.linalg.eigh(joint.T @ joint)[1][:, ::-1][:, : text.shape[1]] @ _turn(text.shape[1])
    widths = np.cumsum([part.shape[1] for part in parts])
    maps = [rows * scale for rows, scale in zip(np.split(components, widths[:-1]), scales, strict=True)]
    of_text = 1 / text_scale[:, None].astype(np.float64)
    return Fusion(
        _single(text_mean),
        _single(of_text * maps[0]),
        {
            name: View(_single(view.mean), _single(of_text * view.of_text), _single(own))
            for (name, view), own in zip(fitted.items(), maps[1:], strict=True)
        },
    )


def _fit_view(name: str, text: Float[np.ndarray, "N D"], vectors: Float[np.ndarray, "N E"]) -> View:
    """Fit the regression of a view on standardised texts; its map is still to be found."""
    has = np.isfinite(vectors).all(1)
    if has.sum() < 2:
        raise ValueError(
            f"sids.{name}_weight: {int(has.sum())} of {len(vectors)} items have a vector of this kind; set it to 0, or see "
            f"that more items have one and run their job again"
        )
    mean, known = vectors[has].mean(0, dtype=np.float64), text[has]
    covariance = known.T @ known
    covariance += np.eye(len(covariance)) * RIDGE * np.trace(covariance) / len(covariance)
    return View(mean, np.linalg.solve(covariance, known.T @ (vectors[has] - mean)), np.empty((0, 0)))


def _turn(dim: int) -> Float[np.ndarray, "C C"]:
    """Return a fixed random rotation."""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]


def _single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def save_fusion(fusion: Fusion, folder: Path) -> None:
    """Write the maps beside the quantiser."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.{key}": array for name, view in fusion.views.items() for key, array in view._asdict().items()}
    save_file({"text_mean": fusion.text_mean, "text_map": fusion.text_map} | tensors, folder / FUSION)


def load_fusion(folder: Path) -> Fusion | None:
    """Read what `save_fusion` wrote; None if the quantiser reads text vectors alone.

    Raises:
        ValueError: the file is of an earlier version.
    """
    if not (folder / FUSION).is_file():
        return None
    tensors = load_file(folder / FUSION)
    if "text_map" not in tensors:
        raise ValueError(f"{folder / FUSION}: is of an earlier version; fit it again by `digr sids build CONFIG --force`")
    names = sorted(key.removesuffix(".mean") for key in tensors if key.endswith(".mean"))
    views = {name: View(*(tensors[f"{name}.{key}"] for key in View._fields)) for name in names}
    return Fusion(tensors["text_mean"], tensors["text_map"], views)
