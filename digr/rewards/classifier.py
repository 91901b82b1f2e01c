"""The interest classifier: a light cross-encoder (interest, item text) -> calibrated probability (RLDI).

A frozen sentence encoder reads both sides; one trained cross-attention layer lets the interest's tokens read the text's.
Each text and each phrase is encoded once, however many pairs it is in, and a few thousand pairs are enough, because
the similarity that the encoder brings need not be learnt again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, scaled_dot_product_attention
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from digr.config.interests import ClassifierConfig

HEAD, CALIBRATION = "head.safetensors", "calibration.json"


class CrossHead(nn.Module):
    """One cross-attention layer and a small network over token vectors of an interest and of a text.

    The logit starts as a rising function of two similarities, of the mean vectors and of each interest token with its
    best text token (late interaction, ColBERT, 2004.12832), so that training only has to correct them.
    """

    def __init__(self, dim: int, inner_dim: int = 128, num_heads: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value = nn.Linear(dim, inner_dim), nn.Linear(dim, 2 * inner_dim)
        last = nn.Linear(inner_dim, 1)
        self.network = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(3 * dim + inner_dim, inner_dim), nn.GELU(), nn.Dropout(dropout), last
        )
        self.similarity = nn.Linear(2, 1)
        nn.init.constant_(self.similarity.weight, 4.0)
        nn.init.constant_(self.similarity.bias, -3.0)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self,
        interest: Float[Tensor, "B S D"],
        interest_mask: Bool[Tensor, "B S"],
        text: Float[Tensor, "B T D"],
        text_mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, " B"]:
        """Return one logit per pair; masks are true on real tokens."""
        phrase, item = _mean(interest, interest_mask), _mean(text, text_mask)
        close = torch.einsum("bsd,btd->bst", interest, text) / (
            interest.norm(dim=-1)[..., None] * text.norm(dim=-1)[:, None] + 1e-6
        )
        best = close.masked_fill(~text_mask[:, None], -1).amax(-1)
        best = (best * interest_mask).sum(-1) / interest_mask.sum(-1)
        query = self.query(interest)
        key, value = self.key_value(text).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        read = scaled_dot_product_attention(q, k, v, attn_mask=text_mask[:, None, None]).transpose(1, 2).flatten(2)
        scale = interest.shape[-1] ** 0.5
        features = [phrase * scale, phrase * item * scale, (phrase - item).abs() * scale, _mean(query * read, interest_mask)]
        similarity = torch.stack([(phrase * item).sum(-1), best], dim=-1)
        return (self.similarity(similarity) + self.network(torch.cat(features, dim=-1)))[:, 0]


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens, scaled to length 1."""
    return normalize((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


class InterestClassifier(NamedTuple):
    """A cross-encoder with its calibration: probability = sigmoid(slope * logit + intercept)."""

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: nn.Module
    max_tokens: int
    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, interests: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, " P"]:
        """Return the calibrated probability that each interest is specific and grounded in its text."""
        return 1 / (1 + np.exp(-(self.slope * self.logits(interests, texts) + self.intercept)))

    def logits(self, interests: Sequence[str], texts: Sequence[str], batch_size: int = 256) -> Float[np.ndarray, " P"]:
        """Return one raw logit per pair, in the given order; each distinct string is encoded once."""
        if not interests:
            return np.zeros(0)
        device = next(self.head.parameters()).device
        pairs = self.encode(interests, texts)
        with torch.inference_mode():
            parts = [
                self.head(*pairs.batch(np.arange(start, min(start + batch_size, len(interests))), device))
                for start in range(0, len(interests), batch_size)
            ]
        return torch.cat(parts).float().cpu().numpy().astype(np.float64)

    def encode(self, interests: Sequence[str], texts: Sequence[str]) -> "EncodedPairs":
        """Encode the distinct interests and texts of some pairs."""
        (phrases, phrase_index), (items, text_index) = (
            np.unique(np.array(strings, dtype=object), return_inverse=True) for strings in (interests, texts)
        )
        vectors = [_token_vectors(self.encoder, self.tokenizer, one.tolist(), self.max_tokens) for one in (phrases, items)]
        return EncodedPairs(vectors[0], phrase_index, vectors[1], text_index)

    def save(self, folder: Path) -> None:
        """Write the encoder in the Hugging Face layout, the head as safetensors and the calibration as JSON."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD)
        numbers = {"max_tokens": self.max_tokens, "slope": self.slope, "intercept": self.intercept}
        (folder / CALIBRATION).write_text(json.dumps(numbers))


class EncodedPairs(NamedTuple):
    """Token vectors of distinct phrases and texts, [length, D] each in half precision, and where each pair finds its own."""

    phrases: list[Tensor]
    phrase_index: Int[np.ndarray, " P"]
    texts: list[Tensor]
    text_index: Int[np.ndarray, " P"]

    def batch(self, rows: Int[np.ndarray, " B"], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the padded arguments of `CrossHead.forward` for some pairs."""
        arguments: list[Tensor] = []
        for vectors, index in ((self.phrases, self.phrase_index), (self.texts, self.text_index)):
            chosen = [vectors[row] for row in index[rows]]
            lengths = torch.tensor([len(one) for one in chosen], device=device)
            padded = nn.utils.rnn.pad_sequence(chosen, batch_first=True).to(device).float()
            arguments += [padded, torch.arange(padded.shape[1], device=device) < lengths[:, None]]
        return arguments[0], arguments[1], arguments[2], arguments[3]


def load_classifier(folder: Path, device: str = "cpu") -> InterestClassifier:
    """Load what `save` wrote, in evaluation mode.

    Raises:
        ValueError: the folder has no calibration.
    """
    if not (folder / CALIBRATION).is_file():
        raise ValueError(f"{folder}: no {CALIBRATION}; expected the artifact that jobs.train_classifier writes")
    fresh = build_classifier(str(folder), **json.loads((folder / CALIBRATION).read_text()), device=device)
    fresh.head.load_state_dict(load_file(folder / HEAD, device=device))
    return fresh


def build_classifier(
    base: str, max_tokens: int, slope: float = 1.0, intercept: float = 0.0, device: str = "cpu"
) -> InterestClassifier:
    """Put an untrained head on a sentence encoder.

    Args:
        base: local folder or hub name of a transformers encoder.
        max_tokens: longest text, tokens.
    """
    encoder = AutoModel.from_pretrained(base, trust_remote_code=False).eval().requires_grad_(False).to(device)
    head = CrossHead(encoder.config.hidden_size).eval().to(device)
    return InterestClassifier(encoder, AutoTokenizer.from_pretrained(base), head, max_tokens, slope, intercept)


@torch.inference_mode()
def _token_vectors(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, strings: list[str], max_tokens: int, batch_size: int = 32
) -> list[Tensor]:
    vectors: list[Tensor] = [torch.empty(0)] * len(strings)
    order = sorted(range(len(strings)), key=lambda row: len(strings[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [strings[row] for row in rows], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        hidden = encoder(**batch.to(encoder.device)).last_hidden_state.to(torch.float16).cpu()
        for row, tokens, mask in zip(rows, hidden, batch["attention_mask"].bool().cpu(), strict=True):
            vectors[row] = tokens[mask]
    return vectors


def fit_head(
    head: nn.Module,
    pairs: EncodedPairs,
    label: Int[np.ndarray, " P"],
    config: ClassifierConfig,
    *,
    num_workers: int = 1,
    rng: np.random.Generator,
    report: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
) -> None:
    """Train the head in place on this worker's pairs: binary cross-entropy, AdamW, rate falling to 0.

    Every worker must be given the same number of pairs, else the workers' collectives wait for each other for ever.

    Args:
        head: a `CrossHead`, or a distributed wrapper of one.
        num_workers: workers that share a step; `config.batch_size` counts over all of them.
        report: called after each epoch with epoch and mean loss.
    """
    device = next(head.parameters()).device
    batch_size = max(1, config.batch_size // num_workers)
    num_steps = config.epochs * -(-len(label) // batch_size)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / num_steps, total_iters=num_steps)
    head.train()
    for epoch in range(1, config.epochs + 1):
        order, losses = rng.permutation(len(label)), []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            target = torch.as_tensor(label[rows], dtype=torch.float32, device=device)
            loss = binary_cross_entropy_with_logits(head(*pairs.batch(rows, device)), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        report({"epoch": epoch, "loss": float(np.mean(losses))})
    head.eval()
