"""Calibration of the interest classifier, and its metrics on held-out items (RLDI)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

EVALUATION = "evaluation.json"
"""File of the `classifier` artifact with its evaluation on held-out items: metrics, reliability, threshold curve."""


class Calibrated(NamedTuple):
    """The calibration, probability = sigmoid(slope * logit + intercept), fitted on all pairs, and its evaluation.

    `probability` of a pair, and all metrics, use a curve that was fitted on the other half of the items.
    """

    slope: float
    intercept: float
    probability: Float[np.ndarray, " P"]
    metrics: dict[str, float]


def calibrate(
    logits: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], kinds: Sequence[str], half: Int[np.ndarray, " P"]
) -> Calibrated:
    """Fit the calibration, and evaluate it on each half of the items with the curve of the other half.

    Args:
        logits: logits of pairs of held-out items.
        half: 0 or 1, which half a pair's item is in; no item may be in both.
    """
    probability = np.empty(len(logits))
    for number in (0, 1):
        rows = half == number
        slope, intercept = fit_calibration(logits[~rows], label[~rows])
        probability[rows] = 1 / (1 + np.exp(-(slope * logits[rows] + intercept)))
    slope, intercept = fit_calibration(logits, label)
    return Calibrated(slope, intercept, probability, classifier_metrics(probability, label, kinds))


def held_out_evaluation(found: Calibrated, label: Int[np.ndarray, " P"]) -> dict[str, Any]:
    """Return the content of `EVALUATION`: metrics, reliability and threshold curve."""
    curves = {"reliability": reliability(found.probability, label), "threshold": threshold_curve(found.probability, label)}
    return {"metrics": found.metrics} | curves


def fit_calibration(logits: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"]) -> tuple[float, float]:
    """Fit slope and intercept of a logistic curve over the logits (Platt scaling), slope at least 0.

    Raises:
        ValueError: only one label occurs.
    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(label)) < 2:
        raise ValueError(
            f"calibration: {len(label)} held-out pairs have one label only, expected both; raise classifier.valid_share"
        )
    fitted = LogisticRegression().fit(logits[:, None], label)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, intercept) if slope > 0 else (0.0, float(np.log(label.mean() / (1 - label.mean()))))


def classifier_metrics(
    probability: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], kinds: Sequence[str], num_bins: int = 10
) -> dict[str, float]:
    """Return auroc, average_precision and expected_calibration_error, and auroc_<kind> against each kind of negatives.

    Metrics that are undefined because only one label occurs are left out.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

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
    """Return the mean distance between mean probability and share of ones over equal-width bins, weighted by their size."""
    bins = reliability(probability, label, num_bins)
    return sum(row["pairs"] * abs(row["probability"] - row["share"]) for row in bins) / max(1, len(label))


def reliability(probability: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], num_bins: int = 10) -> list[dict[str, float]]:
    """Return mean probability, share of ones and number of pairs of each equal-width bin that is not empty."""
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    return [
        {"probability": float(probability[rows].mean()), "share": float(label[rows].mean()), "pairs": int(rows.sum())}
        for rows in (bins == bin_index for bin_index in np.unique(bins))
    ]


def threshold_curve(
    probability: Float[np.ndarray, " P"], label: Int[np.ndarray, " P"], num_thresholds: int = 99
) -> list[dict[str, float]]:
    """Return for each threshold the share of trusted pairs, the precision (1 if none is trusted) and the recall."""
    curve = []
    for threshold in np.arange(1, num_thresholds + 1) / (num_thresholds + 1):
        trusted = probability >= threshold
        hits = float(label[trusted].sum())
        precision = hits / trusted.sum() if trusted.any() else 1.0
        recall = hits / max(1, label.sum())
        point = {"threshold": threshold, "trusted_rate": trusted.mean(), "precision": precision, "recall": recall}
        curve.append({name: float(value) for name, value in point.items()})
    return curve
