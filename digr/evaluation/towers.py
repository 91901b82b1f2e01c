"""Trained baselines: SASRec over item ids, the same over frozen text vectors, and the sum of the two.

A tower is the self-attention of SASRec (Kang & McAuley 2018, arXiv 1808.09781) with two changes that make it a strong baseline:
its loss is the softmax over all items instead of one sampled negative, and scores are cosines divided by a temperature instead
of inner products. The text tower differs only in its item vectors: a learned map of text vectors instead of free parameters, so
it can distinguish items that training never saw. The towers are trained separately, and their scores are summed for ranking.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from digr.config.run import MAX_TOWER_ITEMS, TowersConfig
from digr.data.sequences import ranges
from digr.data.transitions import TrainingSequences
from digr.evaluation.metrics import rank_gains
from digr.ranking.neighbours import HistoryItems

TEXT_TOWER = "text_tower"
TOWERS = ("sasrec", TEXT_TOWER)
SYSTEMS: Mapping[str, tuple[str, ...]] = {name: (name,) for name in TOWERS} | {"two_towers": TOWERS}
"""System -> towers whose log-probabilities are summed with weight 1."""

NO_ITEM = -1
MAX_SCORES = 2**24
"""Most scores in memory at once while ranking."""
TIE = 1e-6
"""Log-probabilities that differ by less count as equal."""
K = 10
SCORE = f"ndcg@{K}"
"""Validation metric that selects the epoch."""
INIT_STD = 0.02


class Tower(nn.Module):
    """A causal transformer over the items of a history; its state at each position is scored against all N items."""

    text: Tensor | None

    def __init__(self, config: TowersConfig, num_items: int, max_history: int, text: Float[Tensor, "N D"] | None = None) -> None:
        """Initialise weights from the global generator.

        Args:
            max_history: longest history that it reads.
            text: frozen vectors of the items' texts; without them each item has a free vector.

        Raises:
            ValueError: the catalogue is too large.
        """
        super().__init__()
        if num_items > MAX_TOWER_ITEMS:
            raise ValueError(
                f"towers: found {num_items} items, but a training step can score at most {MAX_TOWER_ITEMS}; set "
                f"towers.enabled=false"
            )
        dim = config.dim
        self.register_buffer("text", text, persistent=False)
        self.items: nn.Embedding | nn.Sequential = nn.Embedding(num_items, dim) if text is None else _adaptor(text.shape[1], dim)
        self.places = nn.Embedding(max_history, dim)
        for module in (self.items, self.places):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
        self.input_norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            dim, config.num_heads, 4 * dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.num_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.num_items, self.temperature = num_items, config.temperature

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.places.weight.device

    def vectors(self) -> Float[Tensor, "N D"]:
        """Return the vectors of all items."""
        return self.items.weight if isinstance(self.items, nn.Embedding) else self.items(self.text)

    def states(self, history: Int[Tensor, "B T"], vectors: Float[Tensor, "N D"]) -> Float[Tensor, "B T D"]:
        """Read histories, oldest first; they are padded on the right, which does not affect earlier states."""
        width = history.shape[1]
        found = self.dropout(self.input_norm(vectors[history.clamp(min=0)] + self.places.weight[:width]))
        mask = nn.Transformer.generate_square_subsequent_mask(width, device=history.device)
        return self.layers(found, mask=mask, is_causal=True)

    def logits(self, states: Float[Tensor, "P D"], vectors: Float[Tensor, "N D"]) -> Float[Tensor, "P N"]:
        """Score all items after each state."""
        return normalize(states, dim=-1) @ normalize(vectors, dim=-1).T / self.temperature

    def loss(self, windows: Int[Tensor, "B T1"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the next items in each window, all but its first."""
        target, vectors = windows[:, 1:], self.vectors()
        states = self.states(windows[:, :-1], vectors)
        real = target != NO_ITEM
        return cross_entropy(self.logits(states[real], vectors), target[real])

    @torch.inference_mode()
    def log_probs(self, history: Int[Tensor, "B T"]) -> Float[Tensor, "B N"]:
        """Return the log-probability of each item after each history."""
        vectors = self.vectors()
        last = (history != NO_ITEM).sum(1) - 1
        states = self.states(history, vectors)[torch.arange(len(history)), last]
        return self.logits(states, vectors).log_softmax(-1)


def _adaptor(text_dim: int, dim: int) -> nn.Sequential:
    """Return the map from text vectors to item vectors."""
    return nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, dim), nn.GELU(), nn.Linear(dim, dim))


def save_tower(tower: Tower, folder: Path, name: str) -> None:
    """Write the weights as safetensors, without the texts' vectors."""
    save_file({key: value.contiguous() for key, value in tower.state_dict().items()}, folder / f"{name}.safetensors")


def load_tower(folder: Path, name: str, config: TowersConfig, num_items: int, text: Float[Tensor, "N D"] | None) -> Tower:
    """Load what `save_tower` wrote, in evaluation mode."""
    weights = load_file(folder / f"{name}.safetensors")
    tower = Tower(config, num_items, len(weights["places.weight"]), text)
    tower.load_state_dict(weights)
    return tower.eval()


def training_windows(sequences: Iterable[TrainingSequences], max_history: int) -> HistoryItems:
    """Cut users' training sequences into windows of at most `max_history` + 1 items, from the end backwards.

    Neighbouring windows share one item, the last of one and the first of the next, so every training interaction but a user's
    first is a target exactly once.
    """
    items, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for chunk in sequences:
        steps = np.maximum(np.diff(chunk.start) - 1, 0)
        per_user = -(-steps // max_history)
        number = ranges(np.zeros_like(per_user), per_user)
        last = np.repeat(chunk.start[1:] - 1, per_user) - number * max_history
        length = np.minimum(np.repeat(steps, per_user) - number * max_history, max_history) + 1
        items.append(chunk.item[ranges(last - length + 1, length)])
        lengths.append(length)
    return HistoryItems(np.concatenate(items), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))


def pad(histories: HistoryItems, rows: Int[np.ndarray, " B"]) -> Int[Tensor, "B T"]:
    """Return some histories as rows of a tensor, padded with `NO_ITEM` on the right."""
    length = np.diff(histories.start)[rows]
    real = np.arange(length.max(initial=1)) < length[:, None]
    padded = np.full(real.shape, NO_ITEM)
    padded[real] = histories.item[ranges(histories.start[rows], length)]
    return torch.from_numpy(padded)


class ValidRows(NamedTuple):
    """Validation histories and their targets."""

    histories: HistoryItems
    target: Int[np.ndarray, " B"]


def fit_tower(
    tower: Tower, windows: HistoryItems, valid: ValidRows, config: TowersConfig, *, rng: np.random.Generator
) -> Iterator[dict[str, float]]:
    """Train in place by AdamW, yielding epoch, loss and NDCG@10 on validation after each epoch.

    At the end, the weights are those of the best epoch. Validation is used only to select the epoch and to stop.
    """
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    best, best_epoch, kept = -1.0, 0, dict[str, Tensor]()
    for epoch in range(1, config.epochs + 1):
        tower.train()
        order, losses = rng.permutation(len(windows.start) - 1), []
        for first in range(0, len(order), config.batch_size):
            loss = tower.loss(pad(windows, order[first : first + config.batch_size]).to(tower.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        ndcg = _valid_ndcg(tower.eval(), valid)
        yield {"epoch": epoch, "loss": float(np.mean(losses)), SCORE: ndcg}
        if ndcg > best:
            best, best_epoch, kept = ndcg, epoch, {name: value.clone() for name, value in tower.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    tower.load_state_dict(kept)


def _valid_ndcg(tower: Tower, valid: ValidRows) -> float:
    """Return the mean NDCG@10; among items with equal scores the target comes last."""
    gains, worth = [], rank_gains("ndcg", K, K)
    for rows, scores in score_histories(tower, valid.histories):
        target = torch.from_numpy(valid.target[rows]).to(scores.device)
        ranks = (scores >= scores.gather(1, target[:, None])).sum(1).cpu().numpy()
        gains.append(worth[np.where(ranks > K, 0, ranks)])
    return float(np.concatenate(gains).mean())


class TopItems(NamedTuple):
    """Places of the best items of B histories, best first."""

    score: Float[Tensor, "B k"]
    item: Int[Tensor, "B k"]


def score_histories(tower: Tower, histories: HistoryItems) -> Iterator[tuple[slice, Float[Tensor, "B N"]]]:
    """Yield the log-probabilities of all items, for some histories at a time."""
    num, step = len(histories.start) - 1, max(1, MAX_SCORES // tower.num_items)
    for first in range(0, num, step):
        rows = np.arange(first, min(first + step, num))
        yield slice(first, first + len(rows)), tower.log_probs(pad(histories, rows).to(tower.device))


def rank_systems(
    towers: Mapping[str, Tower], histories: HistoryItems, k: int, generator: torch.Generator
) -> Iterator[tuple[slice, dict[str, TopItems]]]:
    """Yield the k best items of each system by the sum of its towers' log-probabilities, for some histories at a time.

    Items of the history may be listed again, as in all systems. Items with equal texts have equal scores in the text tower: each
    list orders them at random, never by id, which would leak the order of logs that are sorted by id within a day.

    Args:
        generator: on the CPU.
    """
    for found in zip(*(score_histories(tower, histories) for tower in towers.values()), strict=True):
        log_probs = dict(zip(towers, (scores.double().cpu() for _, scores in found), strict=True))
        shuffle = TIE * torch.rand(next(iter(log_probs.values())).shape, generator=generator, dtype=torch.float64)
        sums = {system: torch.stack([log_probs[name] for name in names]).sum(0) for system, names in SYSTEMS.items()}
        yield (
            found[0][0],
            {system: TopItems(*(scores + shuffle).topk(min(k, scores.shape[1]))) for system, scores in sums.items()},
        )
