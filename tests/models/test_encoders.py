"""Item vectors blend text and interests; the embedded encoder gives unit vectors."""

import numpy as np
import pytest
from PIL import Image

from digr.config.models import EncoderConfig, ModelConfig
from digr.interests.images import show_images
from digr.models.encoders import load_encoder, load_image_encoder
from digr.sids.item_vectors import image_vectors, item_vectors
from tests.tiny_models import make_image_encoder

VECTORS = {"north": [1, 0, 0], "east": [0, 1, 0], "up": [0, 0, 1]}


class _Encoder:
    """Looks vectors up, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked.append(texts)
        return np.array([VECTORS[text] for text in texts], np.float32).reshape(-1, 3)


def _blend(interests: str, weight: float = 0.5, encoder: _Encoder | None = None, counted=None):
    return item_vectors(
        ["north", "north", "east"],
        ["east", "up", "up"],
        np.array([0, 0, 1]),
        np.array([0.3, 0.4, 1.0]),
        np.array([True, True, False]),
        encode=encoder or _Encoder(),
        interests=interests,
        interest_weight=weight,
        counted=None if counted is None else np.array(counted),
    )


def test_phrases_that_do_not_count_leave_the_embedding_only_and_what_is_left_may_be_the_text():
    kept, whole = _blend("trusted", counted=[True, False, True]), _blend("trusted")
    np.testing.assert_allclose(kept.embedding, [[np.sqrt(0.5), np.sqrt(0.5), 0], [1, 0, 0], [0, 1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(kept.interest_embedding, whole.interest_embedding)
    assert _blend("trusted", counted=[False, False, True]).text_only.tolist() == [True, True, True]
    assert _blend("all", counted=[False, False, True]).text_only.tolist() == [True, False, True]
    assert (whole.text_only.tolist(), _blend("none").text_only.tolist()) == ([False, True, True], [True] * 3)


def test_trusted_interests_are_weighted_by_confidence_and_others_fall_back_to_the_text():
    vectors = _blend("trusted")
    root = np.sqrt(2)
    np.testing.assert_allclose(vectors.embedding, [[1 / root, 0.6 / root, 0.8 / root], [1, 0, 0], [0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(vectors.interest_embedding, [[0, 0.6, 0.8], [0, 0, 0], [0, 0, 0]], rtol=1e-6)
    assert vectors.has_trusted.tolist() == [True, False, False]


def test_all_interests_enter_whether_trusted_or_not():
    np.testing.assert_allclose(_blend("all").embedding[1], [np.sqrt(0.5), 0, np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(_blend("all", weight=1.0).embedding, [[0, 0.6, 0.8], [0, 0, 1], [0, 1, 0]], rtol=1e-6)


def test_without_interests_only_the_embedding_changes():
    none, trusted = _blend("none"), _blend("trusted")
    np.testing.assert_array_equal(none.embedding, [[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(none.interest_embedding, trusted.interest_embedding)


def test_each_distinct_phrase_is_encoded_once():
    encoder = _Encoder()
    _blend("all", encoder=encoder)
    assert encoder.asked == [["north", "north", "east"], ["east", "up"]]


def test_items_without_any_interest_are_their_text():
    vectors = item_vectors(
        ["up"], [], np.zeros(0, int), np.zeros(0), np.zeros(0, bool), encode=_Encoder(), interests="all", interest_weight=0.5
    )
    assert vectors.embedding.tolist() == [[0, 0, 1]]
    assert not vectors.has_trusted.any()


def test_the_embedded_encoder_puts_a_paraphrase_nearer_than_another_topic():
    encode = load_encoder(EncoderConfig(max_tokens=32))
    near, text, far = encode(["keeping a lawn healthy", "garden grass care", "soldering circuit boards"])
    assert np.linalg.norm([near, text, far], axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert near @ text > far @ text + 0.2


def test_the_order_and_the_batching_of_texts_do_not_change_their_vectors():
    texts = ["a", "a much longer sentence about drills and bits", "socks"]
    whole = load_encoder(EncoderConfig(max_tokens=32))(texts)
    single = load_encoder(EncoderConfig(max_tokens=32), batch_size=1)(texts[::-1])[::-1]
    np.testing.assert_allclose(whole, single, atol=1e-5)


@pytest.mark.parametrize(("kind", "dim"), [("clip", 24), ("siglip", 32)])
def test_images_become_unit_vectors_and_an_item_without_one_has_none(tmp_path, kind, dim):
    encode = load_image_encoder(ModelConfig(name=str(make_image_encoder(tmp_path, kind))))
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "blue.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    uris = [str(tmp_path / f"{name}.png") for name in ("red", "broken", "blue", "red")]
    vectors, has = image_vectors([shown.url for shown in show_images(uris, max_bytes=10_000, max_side=64)], encode)
    assert vectors.shape == (4, dim) and has.tolist() == [True, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(vectors[has], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    assert image_vectors([None, None], encode)[1].tolist() == [False, False]


def test_a_model_without_an_image_tower_is_an_error():
    with pytest.raises(ValueError, match=r"embeddings\.image_encoder = .*has no get_image_features"):
        load_image_encoder(ModelConfig(name="minilm"))
