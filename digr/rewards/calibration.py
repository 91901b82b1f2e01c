"""Calibration of the interest classifier, and what is measured of it on held-out items (RLDI)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score


class Calibrated(NamedTuple):
    """Probability = sigmoid(slope * logit + intercept), and the metrics of it on other pairs."""

    slope: float
    intercept: float
    metrics: dict[str, float]


def calibrate(
    logits: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], kinds: Sequence[str], fits: Bool[np.ndarray, " P"]
) -> Calibrated:
    """Fit the calibration on the pairs marked `fits` and measure on the others; no item may be in both."""
    slope, intercept = fit_calibration(logits[fits], label[fits])
    probability = 1 / (1 + np.exp(-(slope * logits[~fits] + intercept)))
    return Calibrated(slope, intercept, classifier_metrics(probability, label[~fits], np.array(kinds)[~fits].tolist()))


def fit_calibration(logits: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"]) -> tuple[float, float]:
    """Fit slope and intercept of a logistic curve over the logits (Platt scaling), slope at least 0.

    Raises:
        ValueError: only one label occurs.
    """
    if len(np.unique(label)) < 2:
        raise ValueError(
            f"calibration: {len(label)} held-out pairs with one label only; expected both; raise classifier.valid_share"
        )
    fitted = LogisticRegression().fit(logits[:, None], label)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, intercept) if slope > 0 else (0.0, float(np.log(label.mean() / (1 - label.mean()))))


def classifier_metrics(
    probability: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], kinds: Sequence[str], num_bins: int = 10
) -> dict[str, float]:
    """Return auroc, average_precision and expected_calibration_error, and auroc_<kind> of each kind of negative alone.

    A value is left out where it is not defined because only one label occurs.
    """
    metrics = {"expected_calibration_error": expected_calibration_error(probability, label, num_bins)}
    if 0 < label.sum() < len(label):
        metrics["auroc"] = float(roc_auc_score(label, probability))
        metrics["average_precision"] = float(average_precision_score(label, probability))
    named = np.array(kinds)
    for kind in sorted(set(named[label == 0].tolist())):
        rows = (label == 1) | (named == kind)
        if label[rows].any():
            metrics[f"auroc_{kind}"] = float(roc_auc_score(label[rows], probability[rows]))
    return metrics


def expected_calibration_error(probability: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], num_bins: int = 10) -> float:
    """Return the mean distance between probability and share of ones over equal-width bins, weighted by their size."""
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    gap = np.bincount(bins, weights=probability - label, minlength=num_bins)
    return float(np.abs(gap).sum() / max(1, len(label)))
