"""The interest classifier: two trained views of a sentence encoder's vectors -> calibrated probability (RLDI).

The encoder is frozen and reads each distinct phrase and text once. The trained part is small: linear maps of interests and
texts, so that their cosine tells whether an interest is grounded in a text, and the specificity of a phrase
(`digr.rewards.training`).

Training treats an item's own interests as positives, so a head would trust all interests of the items that it was trained
on. Therefore there is one head per fold of the items, and each item is labelled by the head that did not see it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from digr.config.models import PairEncoderConfig
from digr.models.encoders import Encode
from digr.rewards.pairs import id_numbers

HEADS, CALIBRATION = "heads.safetensors", "calibration.json"
SCALE = 20.0
"""Logit of a cosine of 1: the inverse temperature of the contrastive loss."""


class MatchHead(nn.Module):
    """Logit = SCALE * cos(view of the interest, view of the text) + specificity of the interest.

    Views start as the identity and the specificity as 0, so an untrained head ranks by the encoder's similarity.
    """

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.interest, self.text, self.specificity = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 1)
        for view in (self.interest, self.text):
            nn.init.eye_(view.weight)
            nn.init.zeros_(view.bias)
        nn.init.zeros_(self.specificity.weight)
        nn.init.zeros_(self.specificity.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, interest: Float[Tensor, "P D"], text: Float[Tensor, "N D"]) -> Float[Tensor, "N P"]:
        """Return the logit of every interest for every text, from unit vectors."""
        return SCALE * self._text(text) @ self._interest(interest).T + self._specific(interest)

    def of_pairs(self, interest: Float[Tensor, "P D"], text: Float[Tensor, "P D"]) -> Float[Tensor, " P"]:
        """Return the logit of each interest for its own text."""
        return SCALE * (self._text(text) * self._interest(interest)).sum(-1) + self._specific(interest)

    def _text(self, text: Tensor) -> Tensor:
        return normalize(self.text(self.dropout(text)), dim=-1)

    def _interest(self, interest: Tensor) -> Tensor:
        return normalize(self.interest(self.dropout(interest)), dim=-1)

    def _specific(self, interest: Tensor) -> Tensor:
        return self.specificity(interest * interest.shape[-1] ** 0.5)[:, 0]


class InterestClassifier(NamedTuple):
    """One head per fold on an encoder, with their calibration: probability = sigmoid(slope * logit + intercept)."""

    encode: Encode
    heads: nn.ModuleList
    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, interests: Sequence[str], texts: Sequence[str], owner_ids: Sequence[str]) -> Float[np.ndarray, " P"]:
        """Return the calibrated probability that each interest is specific and grounded in its owner's text."""
        return 1 / (1 + np.exp(-(self.slope * self.logits(interests, texts, owner_ids) + self.intercept)))

    @torch.inference_mode()
    def logits(self, interests: Sequence[str], texts: Sequence[str], owner_ids: Sequence[str]) -> Float[np.ndarray, " P"]:
        """Return one raw logit per pair, by the head that did not see the pair's owner; each distinct string is encoded once."""
        if not interests:
            return np.zeros(0)
        pairs, fold = encode_pairs(self.encode, interests, texts), folds_of(owner_ids, len(self.heads))
        device, logits = next(self.heads.parameters()).device, np.empty(len(interests))
        for index, head in enumerate(self.heads):
            assert isinstance(head, MatchHead)
            rows = np.flatnonzero(fold == index)
            phrases, items = pairs.phrases[pairs.phrase_index[rows]], pairs.texts[pairs.text_index[rows]]
            logits[rows] = head.of_pairs(phrases.to(device), items.to(device)).double().cpu().numpy()
        return logits


def folds_of(owner_ids: Sequence[str], num_folds: int) -> Int[np.ndarray, " P"]:
    """Return the fold of each owner, in [0, num_folds); it depends on the id alone."""
    return (id_numbers(owner_ids, "fold") * num_folds).astype(np.int64)


class EncodedPairs(NamedTuple):
    """Unit vectors of the distinct phrases and texts of P pairs, and the indices of each pair into them."""

    phrases: Float[Tensor, "U D"]
    phrase_index: Int[np.ndarray, " P"]
    texts: Float[Tensor, "N D"]
    text_index: Int[np.ndarray, " P"]

    def take(self, rows: Int[np.ndarray, " B"]) -> "EncodedPairs":
        """Keep some pairs."""
        return self._replace(phrase_index=self.phrase_index[rows], text_index=self.text_index[rows])


def encode_pairs(encode: Encode, interests: Sequence[str], texts: Sequence[str]) -> EncodedPairs:
    """Encode the distinct interests and texts of pairs."""
    (phrases, phrase_index), (items, text_index) = (
        np.unique(np.array(strings, dtype=object), return_inverse=True) for strings in (interests, texts)
    )
    vectors = [torch.from_numpy(encode(strings.tolist())) for strings in (phrases, items)]
    return EncodedPairs(vectors[0], phrase_index, vectors[1], text_index)


def save_classifier(folder: Path, classifier: InterestClassifier, base: PairEncoderConfig) -> None:
    """Write the heads as safetensors, and the calibration and the encoder's config as JSON."""
    save_file({name: value.contiguous() for name, value in classifier.heads.state_dict().items()}, folder / HEADS)
    numbers = {"slope": classifier.slope, "intercept": classifier.intercept, "base": base.model_dump()}
    (folder / CALIBRATION).write_text(json.dumps(numbers))


def load_classifier(folder: Path, load_encoder: Callable[[PairEncoderConfig], Encode], device: str = "cpu") -> InterestClassifier:
    """Load what `save_classifier` wrote, in evaluation mode, with the encoder of its training.

    Raises:
        ValueError: the folder has no calibration.
    """
    if not (folder / CALIBRATION).is_file():
        raise ValueError(f"{folder}: no {CALIBRATION}; expected the artifact that jobs.train_classifier writes")
    numbers, weights = json.loads((folder / CALIBRATION).read_text()), load_file(folder / HEADS, device=device)
    dims = [value.shape[1] for name, value in weights.items() if name.endswith("specificity.weight")]
    heads = nn.ModuleList([MatchHead(dim) for dim in dims]).eval().to(device)
    heads.load_state_dict(weights)
    encode = load_encoder(PairEncoderConfig.model_validate(numbers["base"]))
    return InterestClassifier(encode, heads, numbers["slope"], numbers["intercept"])
