"""The calibration finds the curve behind the labels, and its metrics measure what their names say."""

import numpy as np
import pytest

from digr.rewards.calibration import (
    calibrate,
    classifier_metrics,
    expected_calibration_error,
    fit_calibration,
    reliability,
    threshold_curve,
)


def test_calibration_finds_the_curve_the_labels_were_drawn_from():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20000) * 2
    label = (rng.random(20000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(int)
    assert fit_calibration(logits, label) == pytest.approx((0.5, -1), abs=0.05)
    kinds = np.where(label == 1, "mined", "far_swap").tolist()
    calibrated = calibrate(logits, label, kinds, np.arange(20000) % 2)
    assert calibrated.metrics["expected_calibration_error"] < 0.02
    assert calibrated.metrics["auroc"] == calibrated.metrics["auroc_far_swap"]


def test_each_half_is_measured_by_the_curve_of_the_other():
    logits, label = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5]), np.array([1, 0, 1, 0, 0, 1])
    half = np.array([0, 0, 0, 1, 1, 1])
    calibrated = calibrate(logits, label, ["mined"] * 6, half)
    for side in (0, 1):
        slope, intercept = fit_calibration(logits[half != side], label[half != side])
        expected = 1 / (1 + np.exp(-(slope * logits[half == side] + intercept)))
        np.testing.assert_allclose(calibrated.probability[half == side], expected)
    assert (calibrated.slope, calibrated.intercept) == fit_calibration(logits, label)


def test_a_calibration_never_turns_the_order_around():
    logits = np.array([2.0, 1.0, -1.0, -2.0])
    slope, intercept = fit_calibration(logits, np.array([0, 0, 1, 0]))
    assert slope == 0
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.25)


def test_calibrating_on_one_label_is_an_error():
    with pytest.raises(ValueError, match=r"3 held-out pairs have one label only, expected both; raise classifier\.valid_share"):
        fit_calibration(np.zeros(3), np.ones(3))


def test_the_calibration_error_of_two_bins_by_hand():
    probability, label = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(probability, label) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert expected_calibration_error(np.array([1.0]), np.array([1])) == 0


def test_reliability_has_a_point_for_each_bin_that_is_filled():
    points = reliability(np.array([0.1, 0.12, 0.9, 1.0]), np.array([0, 1, 1, 1]))
    assert [point["pairs"] for point in points] == [2, 2]
    assert [point["share"] for point in points] == [0.5, 1.0]
    assert [point["probability"] for point in points] == pytest.approx([0.11, 0.95])


def test_a_threshold_trades_precision_for_recall_as_counted_by_hand():
    curve = threshold_curve(np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1]), num_thresholds=9)
    assert curve[4] == {"threshold": 0.5, "trusted_rate": 0.5, "precision": 0.5, "recall": 0.5}
    assert curve[6]["precision"] == 1.0
    assert curve[8] == {"threshold": 0.9, "trusted_rate": 0.0, "precision": 1.0, "recall": 0.0}


def test_each_kind_of_negative_has_its_own_auroc():
    probability = np.array([0.8, 0.6, 0.7, 0.1])
    metrics = classifier_metrics(probability, np.array([1, 1, 0, 0]), ["mined", "mined", "near_swap", "far_swap"])
    assert metrics["auroc_near_swap"] == 0.5
    assert metrics["auroc_far_swap"] == 1.0
    assert metrics["auroc"] == 0.75
    assert metrics["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
