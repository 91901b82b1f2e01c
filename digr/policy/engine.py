"""What a training loop asks of its engine, and the engine for one plain PyTorch process.

DeepSpeed satisfies the same protocol in `jobs.policy_training`; this package does not import it.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """One worker's share of data-parallel training. All workers must make the same calls in the same order."""

    rank: int
    world_size: int

    @property
    def module(self) -> nn.Module:
        """The module itself, for decoding and saving."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module's `forward`."""

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of the loss; gradients are averaged, not summed, over the workers."""

    def step(self, lr: float) -> None:
        """Clip the gradient, update the weights with this learning rate and clear the gradient."""

    def total(self, values: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Sum over the workers."""

    def whole(self) -> AbstractContextManager[None]:
        """Have all weights in one piece inside, for decoding and saving."""

    def save(self, folder: Path) -> None:
        """Write this worker's part of weights and optimiser state into a folder."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, with the same number of workers."""


def make_optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Make AdamW; biases and norms are not decayed."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.98))


class PlainEngine:
    """One process, no distribution: PyTorch and AdamW; bf16 by autocast, weights stay in fp32."""

    rank = 0
    world_size = 1

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float, precision: Precision = "fp32"
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.precision = precision

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module."""
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.module(*args, **kwargs)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of the loss."""
        loss.backward()

    def step(self, lr: float) -> None:
        """Clip, update, clear."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def total(self, values: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Return the values: there is one worker."""
        return values

    def whole(self) -> AbstractContextManager[None]:
        """Do nothing: the weights are in one piece."""
        return nullcontext()

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state."""
        torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        """Restore weights and optimiser state."""
        state = torch.load(folder / "engine.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


def learning_rate(progress: float, peak: float, warmup_rate: float) -> float:
    """Return the rate at a point of the training: linear rise over the first share, then half a cosine down to 0.

    Args:
        progress: share of the training that lies behind the end of this step, in (0, 1].
    """
    if progress < warmup_rate:
        return peak * progress / warmup_rate
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup_rate) / (1 - warmup_rate)))
