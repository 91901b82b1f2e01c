"""The classifier learns groundedness, reads back as it was saved, and its calibration is measured on other items."""

import json

import numpy as np
import pytest
import torch

from digr.config.interests import ClassifierConfig
from digr.embeddings import encoder_path
from digr.rewards.calibration import calibrate, classifier_metrics, expected_calibration_error, fit_calibration
from digr.rewards.classifier import CrossHead, EncodedPairs, build_classifier, fit_head, load_classifier


def _padded(length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(length, 64, generator=generator)


def test_padding_does_not_change_a_logit():
    generator = torch.Generator().manual_seed(0)
    head = CrossHead(64).eval()
    torch.nn.init.normal_(head.network[-1].weight)
    phrases, texts = [_padded(n, generator) for n in (2, 5)], [_padded(n, generator) for n in (9, 3)]
    pairs = EncodedPairs(phrases, np.array([0, 1, 0]), texts, np.array([1, 0, 0]))
    together = head(*pairs.batch(np.arange(3), torch.device("cpu")))
    alone = torch.cat([head(*pairs.batch(np.array([row]), torch.device("cpu"))) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_an_untrained_head_ranks_by_similarity_alone():
    head = CrossHead(64).eval()
    vector = torch.nn.functional.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    pairs = EncodedPairs([vector[:1]], np.array([0, 0]), [vector[:1], vector[1:]], np.array([0, 1]))
    same, other = head(*pairs.batch(np.arange(2), torch.device("cpu"))).tolist()
    assert same == pytest.approx(4 + 4 - 3, abs=1e-5)
    assert other == pytest.approx(8 * float(vector[0] @ vector[1]) - 3, abs=1e-5)


def test_a_few_pairs_are_learnt_and_the_saved_classifier_answers_the_same(tmp_path):
    torch.manual_seed(0)
    classifier = build_classifier(encoder_path("minilm"), max_tokens=16)
    topics = {"garden": "grass seed and hose", "kitchen": "bread knife and pan", "boat": "marine rope and anchor"}
    rows = [(f"{a} projects", text, int(a == b)) for a in topics for b, text in topics.items()] * 4
    rows += [("everyday use", text, 0) for text in topics.values()] * 4
    interests, texts, label = map(list, zip(*rows, strict=True))
    losses: list[float] = []
    fit_head(
        classifier.head,
        classifier.encode(interests, texts),
        np.array(label),
        ClassifierConfig(epochs=12, batch_size=16),
        rng=np.random.default_rng(0),
        report=lambda metrics: losses.append(metrics["loss"]),
    )
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    probability = classifier(interests, texts)
    assert np.array_equal(probability > 0.5, np.array(label) == 1)
    classifier._replace(slope=0.5, intercept=0.25).save(tmp_path)
    loaded = load_classifier(tmp_path)
    np.testing.assert_allclose(loaded.logits(interests, texts), classifier.logits(interests, texts), atol=1e-5)
    expected = 1 / (1 + np.exp(-(0.5 * classifier.logits(interests, texts) + 0.25)))
    np.testing.assert_allclose(loaded(interests, texts), expected, atol=1e-5)
    assert json.loads((tmp_path / "calibration.json").read_text()) == {"max_tokens": 16, "slope": 0.5, "intercept": 0.25}


def test_no_pairs_give_no_probabilities():
    assert build_classifier(encoder_path("minilm"), max_tokens=16)([], []).shape == (0,)


def test_a_folder_that_is_no_classifier_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no calibration\.json; expected the artifact that jobs\.train_classifier writes"):
        load_classifier(tmp_path)


def test_calibration_finds_the_curve_the_labels_were_drawn_from():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20000) * 2
    label = (rng.random(20000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(int)
    assert fit_calibration(logits, label) == pytest.approx((0.5, -1), abs=0.05)
    kinds = np.where(label == 1, "mined", "far_swap").tolist()
    calibrated = calibrate(logits, label, kinds, np.arange(20000) % 2 == 0)
    assert calibrated.metrics["expected_calibration_error"] < 0.02
    assert calibrated.metrics["auroc"] == calibrated.metrics["auroc_far_swap"]


def test_a_calibration_never_turns_the_order_around():
    logits = np.array([2.0, 1.0, -1.0, -2.0])
    slope, intercept = fit_calibration(logits, np.array([0, 0, 1, 0]))
    assert slope == 0
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.25)


def test_calibrating_on_one_label_is_an_error():
    with pytest.raises(ValueError, match=r"3 held-out pairs with one label only; expected both; raise classifier\.valid_share"):
        fit_calibration(np.zeros(3), np.ones(3))


def test_the_calibration_error_of_two_bins_by_hand():
    probability, label = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(probability, label) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert expected_calibration_error(np.array([1.0]), np.array([1])) == 0


def test_each_kind_of_negative_has_its_own_auroc():
    probability = np.array([0.8, 0.6, 0.7, 0.1])
    metrics = classifier_metrics(probability, np.array([1, 1, 0, 0]), ["mined", "mined", "near_swap", "far_swap"])
    assert metrics["auroc_near_swap"] == 0.5
    assert metrics["auroc_far_swap"] == 1.0
    assert metrics["auroc"] == 0.75
    assert metrics["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
