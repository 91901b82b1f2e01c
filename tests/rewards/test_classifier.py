"""The classifier learns groundedness, labels an item by a head that never saw it, and reads back as it was saved."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from digr.config.interests import ClassifierConfig
from digr.config.models import EncoderConfig, PairEncoderConfig
from digr.models.encoders import load_encoder
from digr.rewards import training
from digr.rewards.classifier import EncodedPairs, InterestClassifier, MatchHead, folds_of, load_classifier, save_classifier
from digr.rewards.training import fit_classifier, fit_head, training_rows


def _unit(num: int, seed: int, dim: int = 16) -> torch.Tensor:
    vectors = torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_an_untrained_head_ranks_by_similarity_alone():
    interests, texts = _unit(3, 0), _unit(2, 1)
    logits = MatchHead(16).eval()(interests, texts)
    torch.testing.assert_close(logits, 20 * texts @ interests.T, atol=1e-4, rtol=1e-4)


def test_a_pair_has_the_logit_that_the_table_of_all_pairs_has():
    torch.manual_seed(0)
    head = MatchHead(16).eval()
    for part in (head.interest, head.text, head.specificity):
        torch.nn.init.normal_(part.weight)
    interests, texts = _unit(5, 0), _unit(5, 1)
    torch.testing.assert_close(head.of_pairs(interests, texts), head(interests, texts).diagonal(), atol=1e-4, rtol=1e-4)


def _topic_vectors(strings: list[str]) -> np.ndarray:
    """One direction per topic word and one for its lack; texts and interests of a topic point to unrelated directions."""
    topics = ("garden", "kitchen", "boat", "lamp")
    vectors = np.zeros((len(strings), 12), np.float32)
    for row, string in enumerate(strings):
        found = [place for place, topic in enumerate(topics) if topic in string]
        side = 0 if string.startswith("text") else 4
        vectors[row, (side + found[0]) if found else 8 + side // 4] = 1
        vectors[row, 10] = 0.1 * (len(string) % 3)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _mined(per_topic: int = 12) -> pa.Table:
    rows = [
        {"item_id": f"{topic}{number}", "text": f"text of a {topic} thing {number}", "phrase": f"{topic} work"}
        for topic in ("garden", "kitchen", "boat", "lamp")
        for number in range(per_topic)
    ]
    return pa.Table.from_pylist(rows)


def _fit(**config) -> InterestClassifier:
    torch.manual_seed(0)
    chosen = ClassifierConfig(folds=2, batch_size=16, lr=1e-2, **config)
    return fit_classifier(_topic_vectors, _mined(), chosen, rng=np.random.default_rng(0))


def test_the_heads_learn_which_interest_belongs_to_which_text_and_that_generic_ones_belong_to_none():
    classifier = _fit(epochs=10)
    topics = ("garden", "kitchen", "boat", "lamp")
    rows = [(f"{a} work", f"text of a {b} thing", a == b) for a in topics for b in topics]
    rows += [("everyday needs", f"text of a {b} thing", False) for b in topics]
    interests, texts, grounded = map(list, zip(*rows, strict=True))
    for owner in ("x", "y", "z"):
        logits = classifier.logits(interests, texts, [owner] * len(rows))
        assert logits[grounded].min() > logits[~np.array(grounded)].max() + 1


def test_an_owner_is_labelled_by_the_head_of_its_fold():
    heads = torch.nn.ModuleList([MatchHead(12) for _ in range(3)])
    for number, head in enumerate(heads):
        torch.nn.init.constant_(head.specificity.bias, 100.0 * number)
    owners = _mined()["item_id"].to_pylist()
    fold = folds_of(owners, 3)
    assert set(fold.tolist()) == {0, 1, 2}
    logits = InterestClassifier(_topic_vectors, heads).logits(["garden work"] * 48, ["text"] * 48, owners)
    assert np.round(logits / 100).astype(int).tolist() == fold.tolist()


def test_a_head_is_trained_on_every_pair_but_those_of_its_fold_and_workers_get_equally_many():
    fold = np.random.default_rng(0).integers(0, 4, 50)
    for left_out in range(4):
        shares = [training_rows(fold, left_out, rank, 3) for rank in range(3)]
        assert {len(share) for share in shares} == {-(-int((fold != left_out).sum()) // 3)}
        assert set(np.concatenate(shares).tolist()) == set(np.flatnonzero(fold != left_out).tolist())


def test_a_near_duplicate_of_an_own_interest_is_left_out_of_the_negatives():
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    own = torch.tensor([[0, -1], [2, 0], [2, -1]])
    left_out = training._likely_true(vectors, own, vectors)
    assert left_out.tolist() == [[False, True, False], [True, False, True], [False, False, False]]


def test_a_batch_that_holds_one_text_twice_has_a_finite_loss():
    phrases, texts = _unit(3, 0), _unit(2, 1)
    mined, losses = EncodedPairs(phrases, np.array([0, 1, 2, 0]), texts, np.array([0, 0, 1, 1])), []
    config = ClassifierConfig(epochs=2, batch_size=3)
    fit_head(
        MatchHead(16), mined, phrases, config, rng=np.random.default_rng(0), report=lambda metrics: losses.append(metrics["loss"])
    )
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_the_saved_classifier_answers_the_same_on_the_encoder_it_was_trained_on(tmp_path):
    classifier = _fit(epochs=1)._replace(slope=0.5, intercept=0.25)
    base = PairEncoderConfig(name="some-encoder", revision="v2", max_tokens=16)
    save_classifier(tmp_path, classifier, base)
    asked = []
    loaded = load_classifier(tmp_path, lambda base: asked.append(base) or _topic_vectors)
    assert asked == [base]
    arguments = ["garden work", "everyday use"], ["text of a boat", "text of a garden"], ["a", "b"]
    np.testing.assert_allclose(loaded(*arguments), classifier(*arguments), atol=1e-6)
    expected = 1 / (1 + np.exp(-(0.5 * classifier.logits(*arguments) + 0.25)))
    np.testing.assert_allclose(loaded(*arguments), expected, atol=1e-6)
    assert json.loads((tmp_path / "calibration.json").read_text())["intercept"] == 0.25


def test_no_pairs_give_no_probabilities_and_equal_strings_are_encoded_once():
    encoder, asked = load_encoder(EncoderConfig(max_tokens=16)), []
    classifier = InterestClassifier(lambda texts: asked.append(texts) or encoder(texts), torch.nn.ModuleList([MatchHead(384)]))
    assert classifier([], [], []).shape == (0,)
    classifier(["b", "a", "b"], ["t", "t", "t"], ["1", "2", "3"])
    assert asked == [["a", "b"], ["t"]]


def test_a_folder_that_is_no_classifier_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no calibration\.json; expected the artifact that jobs\.train_classifier writes"):
        load_classifier(tmp_path, lambda base: _topic_vectors)
