"""Item vectors blend text and interests; the embedded encoder gives unit vectors."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from digr.config import build_config
from digr.config.images import ImagesConfig
from digr.config.models import EncoderConfig, ModelConfig, PairEncoderConfig
from digr.images.showing import ImageRules, show_images
from digr.models.encoders import load_encoder, load_image_encoder
from digr.models.loading import model_path, torch_dtype
from digr.sids.item_vectors import image_vectors, item_vectors
from tests.tiny_models import make_image_encoder, make_text_encoder

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


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_model_that_pools_its_last_token_is_pooled_there_whatever_stands_beside_a_text(tmp_path, padding_side):
    """Every model was mean-pooled, which gives vectors of no meaning for Qwen3-Embedding."""
    folder, texts = make_text_encoder(tmp_path, padding_side), ["trout", "a much longer text about weekend fishing", "é"]
    found = load_encoder(EncoderConfig(name=str(folder), max_tokens=32))(texts)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == padding_side
    for vector, text in zip(found, texts, strict=True):
        with torch.no_grad():
            last = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, (last / last.norm()).numpy(), atol=1e-5)


def test_a_prompt_stands_before_each_text_only_if_it_is_named(tmp_path):
    folder = str(make_text_encoder(tmp_path))
    plain = load_encoder(EncoderConfig(name=folder))
    asked = load_encoder(EncoderConfig(name=folder, prompt="query"))
    np.testing.assert_allclose(asked(["rod"]), plain(["Query: rod"]), atol=1e-6)
    assert np.abs(asked(["rod"]) - plain(["rod"])).max() > 1e-3
    with pytest.raises(ValueError, match=r"has no prompt 'passage'; expected one of .*'query'"):
        load_encoder(EncoderConfig(name=folder, prompt="passage"))


def test_the_embedded_encoder_gives_the_mean_of_its_tokens_as_it_always_did():
    texts = ["a fly rod", "", "socks " * 60]
    path = model_path("minilm")
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()
    np.testing.assert_allclose(load_encoder(EncoderConfig(max_tokens=32))(texts), expected, atol=1e-6)


def test_bf16_is_loaded_where_it_is_asked_for_and_its_vectors_have_length_1(tmp_path):
    folder = str(make_text_encoder(tmp_path))
    half = load_encoder(EncoderConfig(name=folder, dtype="bf16"))
    assert {value.dtype for value in half.model.parameters()} == {torch.bfloat16}
    vectors = half(["rod", "trout"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, load_encoder(EncoderConfig(name=folder))(["rod", "trout"]), atol=0.05)
    assert {torch_dtype("auto", "cpu"), torch_dtype("fp32", "cuda")} == {torch.float32}
    assert torch_dtype("auto", "cuda:1") == torch.bfloat16


def test_more_tokens_than_the_model_reads_are_refused():
    with pytest.raises(ValueError, match=r"encoder 'minilm': max_tokens = 300, but the model reads at most 256; lower it"):
        load_encoder(EncoderConfig(max_tokens=300))


def test_no_text_gives_no_vector_of_the_right_width():
    assert load_encoder(EncoderConfig())([]).shape == (0, 384)


def test_a_plain_string_is_short_for_an_encoders_name():
    tree = {"run": {"dir": "x"}, "embeddings": {"encoder": "some/model"}, "classifier": {"base": "minilm"}}
    config = build_config(tree, where="test")
    assert config.embeddings.encoder == EncoderConfig(name="some/model", max_tokens=128)
    assert config.classifier.base == PairEncoderConfig(max_tokens=96)
    with pytest.raises(ValueError, match=r"embeddings.encoder.revison: unknown key; the nearest known key is .*\.revision"):
        build_config(tree | {"embeddings": {"encoder": {"revison": "x"}}}, where="test")


@pytest.mark.parametrize(("kind", "dim"), [("clip", 24), ("siglip", 32)])
def test_images_become_unit_vectors_and_an_item_without_one_has_none(tmp_path, kind, dim):
    encode = load_image_encoder(ModelConfig(name=str(make_image_encoder(tmp_path, kind))))
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "blue.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    uris = [str(tmp_path / f"{name}.png") for name in ("red", "broken", "blue", "red")]
    vectors, has = image_vectors(
        [shown.url for shown in show_images(uris, ImageRules(ImagesConfig(), (str(tmp_path),), 10_000, 64))], encode
    )
    assert vectors.shape == (4, dim) and has.tolist() == [True, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(vectors[has], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    assert image_vectors([None, None], encode)[1].tolist() == [False, False]


def test_a_model_without_an_image_tower_is_an_error():
    with pytest.raises(ValueError, match=r"embeddings\.image_encoder = .*has no get_image_features"):
        load_image_encoder(ModelConfig(name="minilm"))
