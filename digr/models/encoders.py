"""Sentence and image encoders: texts or images in, unit vectors out.

Sentence encoders use sentence-transformers, which reads the pooling of tokens from the model's files. The embedded encoder is
all-MiniLM-L6-v2, whose weights come in a Python package; others are given by folder or hub name. PyTorch and both libraries
take seconds to import, so they are imported only when a model is loaded.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
from jaxtyping import Float
from PIL import Image

from digr.config.models import EncoderConfig, ModelConfig
from digr.models.loading import model_path, torch_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import BaseImageProcessor, PreTrainedModel


class Encode(Protocol):
    """Turn texts into unit vectors."""

    def __call__(self, texts: list[str], /) -> Float[np.ndarray, "N D"]:
        """Return the vectors in the order of the texts."""


class EncodeImages(Protocol):
    """Turn RGB images into unit vectors."""

    def __call__(self, images: list[Image.Image], /) -> Float[np.ndarray, "N D"]:
        """Return the vectors in the order of the images."""


class SentenceEncoder(NamedTuple):
    """Unit-length sentence vectors of a sentence-transformers model."""

    model: "SentenceTransformer"
    prompt: str
    """Text that is put before each text."""
    batch_size: int = 64

    def __call__(self, texts: list[str]) -> Float[np.ndarray, "N D"]:
        """Encode texts, internally sorted by length to save padding."""
        import torch

        if not texts:
            return np.zeros((0, self.model.get_embedding_dimension() or 0), np.float32)
        vectors = self.model.encode(
            texts, prompt=self.prompt, batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True
        )
        # normalised in fp32, because a length in bf16 is wrong by up to 0.4 %
        return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def load_encoder(encoder: EncoderConfig, device: str = "cpu", batch_size: int = 64) -> SentenceEncoder:
    """Load a sentence encoder in evaluation mode.

    Raises:
        ValueError: the model has no prompt of this name, or reads fewer tokens than asked.
    """
    from sentence_transformers import SentenceTransformer

    weights = {"dtype": torch_dtype(encoder.dtype, device)}
    path, revision = model_path(encoder.name), encoder.revision or None
    model = SentenceTransformer(path, device=device, revision=revision, model_kwargs=weights)
    if encoder.prompt and encoder.prompt not in model.prompts:
        raise ValueError(f"encoder {encoder.name!r}: has no prompt {encoder.prompt!r}; expected one of {sorted(model.prompts)}")
    longest = model.max_seq_length or encoder.max_tokens
    if encoder.max_tokens > longest:
        raise ValueError(
            f"encoder {encoder.name!r}: max_tokens = {encoder.max_tokens}, but the model reads at most {longest}; lower it"
        )
    model.max_seq_length = encoder.max_tokens
    prompt = model.prompts.get(encoder.prompt or model.default_prompt_name or "") or ""
    return SentenceEncoder(model.eval(), prompt, batch_size)


class ImageEncoder(NamedTuple):
    """Unit-length image vectors of a transformers model with an image tower (CLIP, SigLIP)."""

    model: "PreTrainedModel"
    processor: "BaseImageProcessor"
    batch_size: int = 32

    def __call__(self, images: list[Image.Image]) -> Float[np.ndarray, "N D"]:
        """Encode RGB images; at least one."""
        import torch

        parts, tower = [], cast(Any, self.model)
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                inputs = self.processor(images=images[start : start + self.batch_size], return_tensors="pt")
                found = tower.get_image_features(**inputs.to(self.model.device, self.model.dtype))
                parts.append((found if isinstance(found, torch.Tensor) else found.pooler_output).float().cpu())
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()


def load_image_encoder(encoder: ModelConfig, device: str = "cpu", batch_size: int = 32) -> ImageEncoder:
    """Load an image encoder in evaluation mode.

    Raises:
        ValueError: the model has no image tower.
    """
    from transformers import AutoImageProcessor, AutoModel

    path, revision = model_path(encoder.name), encoder.revision or "main"
    model = AutoModel.from_pretrained(path, trust_remote_code=False, revision=revision, dtype=torch_dtype(encoder.dtype, device))
    if not hasattr(model, "get_image_features"):
        raise ValueError(
            f"embeddings.image_encoder = {encoder.name!r}: {type(model).__name__} has no get_image_features; expected a model "
            f"such as CLIP or SigLIP"
        )
    # the Pillow backend gives equal results on every machine and needs no torchvision
    processor = AutoImageProcessor.from_pretrained(path, revision=revision, backend="pil")
    return ImageEncoder(model.eval().to(device), processor, batch_size)
