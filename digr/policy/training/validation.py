"""Validation during training, and the checkpoints from which a killed training resumes exactly.

Every checkpoint holds the best weights on validation as a Hugging Face folder, so that there is always a policy to return.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from digr.policy.decoding.search import Beams, beam_search, rank_items
from digr.policy.training.engine import Engine
from digr.sids.trie import SidTrie

K = 10
SCORE = f"ndcg@{K}"


class ValidExamples(NamedTuple):
    """Validation examples of this worker."""

    prompts: list[str]
    target_index: Int[Tensor, " B"]
    """Position of each target in `trie.item_ids`."""
    user_ids: Sequence[str] = ()
    """Users of the examples, for rewards that need them."""


class Decoding(NamedTuple):
    """Decoding settings of validation."""

    beam_width: int
    batch_size: int


@dataclass
class Progress:
    """Progress of a training, written into every checkpoint."""

    position: int = 0
    """Epochs (SFT) or steps (GRPO) done."""
    step: int = 0
    """Optimiser steps done."""
    epoch_step: int = 0
    """Optimiser steps done in the unfinished epoch (SFT)."""
    epoch_sums: list[float] = field(default_factory=list)
    """Sums for the metrics of the unfinished epoch (SFT)."""
    num_workers: int = 1
    """Number of workers that wrote the checkpoint."""
    best: float = -math.inf
    """Best score on validation so far: NDCG@10, or that of `grpo.keep`."""
    best_position: int = 0
    stale: int = 0
    """Number of validations since the best one."""
    done: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    """All lines of metrics so far."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Sampled roll-outs so far (GRPO)."""


Save = Callable[[dict[str, Any], Callable[[Path], None]], None]
"""Saves a checkpoint: takes the metrics and a function that writes this worker's files into an empty folder."""
Report = Callable[[dict[str, Any]], None]
"""Reports metrics; all workers call it."""
MeanReward = Callable[[Beams, Int[Tensor, " B"], Sequence[str]], Float[Tensor, " B"]]
"""Returns the mean reward of each example's best items, given its target and user."""


@torch.no_grad()
def validate(
    engine: Engine, trie: SidTrie, valid: ValidExamples, decoding: Decoding, mean_reward: MeanReward | None = None
) -> dict[str, float]:
    """Return HR@10 and NDCG@10 of the constrained beam search, over the examples of all workers.

    NDCG with one relevant item is 1 / log2(1 + rank). Workers may hold different numbers of examples.

    Args:
        mean_reward: mean reward of each example's best items; if given, its mean over the examples is `valid_reward`.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    order = np.argsort([len(prompt) for prompt in valid.prompts], kind="stable")
    with engine.generation_model() as policy:
        for start in range(0, len(order), decoding.batch_size):
            chosen = order[start : start + decoding.batch_size]
            beams = beam_search(policy, trie, [valid.prompts[index] for index in chosen], max(decoding.beam_width, K))
            found, targets = rank_items(trie, beams, K).item_index.cpu(), valid.target_index[torch.from_numpy(chosen)]
            hits = found == targets[:, None]
            gains = hits / torch.log2(torch.arange(2, found.shape[1] + 2))
            user_ids = [valid.user_ids[row] for row in chosen] if valid.user_ids else []
            reward = mean_reward(beams, targets.to(policy.device), user_ids).sum().item() if mean_reward else 0.0
            sums += torch.tensor([len(chosen), hits.sum().item(), gains.sum().item(), reward], dtype=torch.float64)
    count, hit, gain, reward = engine.total(sums).tolist()
    if not count:
        raise ValueError("policy: no validation examples; histories needs rows of split valid")
    scores = {f"hr@{K}": hit / count, SCORE: gain / count, "num_valid": int(count)}
    return scores | ({"valid_reward": reward / count} if mean_reward else {})


def save_if_better(engine: Engine, progress: Progress, score: float, best_folder: Path) -> bool:
    """Write the weights to `best_folder` if their score is the best so far; otherwise count the validations without one."""
    better = score > progress.best
    progress.stale = 0 if better else progress.stale + 1
    if better:
        progress.best, progress.best_position = score, progress.position
        with engine.generation_model() as policy:
            if engine.rank == 0:
                shutil.rmtree(best_folder, ignore_errors=True)
                policy.save(best_folder)
    return better


def save_state(folder: Path, engine: Engine, progress: Progress, best_folder: Path) -> None:
    """Write this worker's part of a checkpoint: engine, random state, and from the first worker progress and best weights."""
    progress.num_workers = engine.world_size
    engine.save(folder)
    torch.save(_random_state(), folder / f"random-{engine.rank}.pt")
    if engine.rank == 0:
        (folder / "progress.json").write_text(json.dumps(asdict(progress)))
        if best_folder.exists():  # not before the first validation
            shutil.copytree(best_folder, folder / "best")


def load_state(folder: Path, engine: Engine, best_folder: Path) -> Progress:
    """Restore what `save_state` wrote, with any number of workers.

    The random state is restored only with the same number of workers.
    """
    progress = Progress(**json.loads((folder / "progress.json").read_text()))
    if progress.done:
        return progress
    engine.load(folder)
    if progress.num_workers == engine.world_size:
        _restore_random_state(torch.load(folder / f"random-{engine.rank}.pt", weights_only=True))
    if engine.rank == 0 and (folder / "best").exists():
        shutil.copytree(folder / "best", best_folder, dirs_exist_ok=True)
    return progress


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
