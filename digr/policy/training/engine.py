"""The interface between a training loop and its engine, and the engine for one plain PyTorch process.

DeepSpeed satisfies the same protocol in `jobs.training.deepspeed_engine`; this package does not import it.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from digr.models.language_models import without_adapters
from digr.policy.model import SidPolicy

Precision = Literal["fp32", "bf16"]
STATE_FILE = "engine.pt"


class Engine(Protocol):
    """One worker's share of data-parallel training. All workers must make the same calls in the same order."""

    rank: int
    world_size: int

    @property
    def module(self) -> nn.Module:
        """The module that is trained. Call it through the engine, and use `generation_model` for generation."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module's `forward`."""

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of the loss; gradients are averaged, not summed, over the workers."""

    def step(self, lr: float) -> None:
        """Clip the gradient, update the weights with this learning rate and clear the gradient."""

    def total(self, values: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Sum over the workers."""

    def generation_model(self) -> AbstractContextManager[SidPolicy]:
        """Provide the current policy in evaluation mode, for generation, scoring and saving.

        All workers must enter it together. Inside, no call waits for other workers: each may use the model as often as it
        needs, and the first worker alone may save it. Its weights are valid until the engine's next step.
        """

    def reference_model(self) -> AbstractContextManager[SidPolicy]:
        """Provide the policy from which training started, in the same way as `generation_model`.

        It is the engine's reference policy, or, if the engine has none, the trained policy without its adapters. Leave one of
        the two models before you enter the other, because they may share memory.
        """

    def save(self, folder: Path) -> None:
        """Write trained weights and optimiser state into a folder; the first worker writes them for all."""

    def load(self, folder: Path) -> None:
        """Restore what `save` of any engine wrote, with any number of workers."""


class TrainState(NamedTuple):
    """State of an engine that cannot be rebuilt from the config; frozen weights are not part of it."""

    weights: dict[str, Tensor]
    """Trained parameters by name, fp32."""
    moments: dict[str, dict[str, Tensor]]
    """Optimiser state of each parameter; empty before the first step."""

    def write(self, folder: Path) -> None:
        """Write the state as one file."""
        torch.save(self._asdict(), folder / STATE_FILE)

    @classmethod
    def read(cls, folder: Path, module: nn.Module) -> "TrainState":
        """Read the state of an engine with a module of the same parameters.

        Raises:
            ValueError: the state has other parameters.
        """
        state = cls(**torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True))
        names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        if names != set(state.weights):
            odd = sorted(names ^ set(state.weights))[0]
            raise ValueError(f"{folder}: a checkpoint of another policy (different: {odd}); remove the folder to start again")
        return state


def make_optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Make AdamW without weight decay for biases and norms."""
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
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        precision: Precision = "fp32",
        reference: SidPolicy | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.precision = precision
        self.reference = None if reference is None else reference.eval().requires_grad_(False)

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

    def generation_model(self) -> AbstractContextManager[SidPolicy]:
        """Provide the module itself."""
        return evaluated(policy_of(self))

    def reference_model(self) -> AbstractContextManager[SidPolicy]:
        """Provide the reference, or the module without adapters."""
        return adapters_off(self) if self.reference is None else nullcontext(self.reference)

    def save(self, folder: Path) -> None:
        """Write trained weights and optimiser state."""
        trained = {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        moments = {name: dict(self.optimizer.state[parameter]) for name, parameter in trained.items()}
        TrainState({name: parameter.detach() for name, parameter in trained.items()}, moments).write(folder)

    def load(self, folder: Path) -> None:
        """Restore trained weights and optimiser state."""
        state = TrainState.read(folder, self.module)
        self.optimizer.state.clear()
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(state.weights[name])
                # PyTorch keeps the number of steps on the CPU
                kept = {key: value.to(parameter.device) if value.ndim else value for key, value in state.moments[name].items()}
                self.optimizer.state[parameter] = kept


def policy_of(engine: Engine) -> SidPolicy:
    """Return the policy that an engine trains."""
    policy = engine.module
    assert isinstance(policy, SidPolicy)
    return policy


@contextmanager
def evaluated(policy: SidPolicy) -> Iterator[SidPolicy]:
    """Put a policy into evaluation mode inside the block."""
    was_training = policy.training
    try:
        yield policy.eval()
    finally:
        policy.train(was_training)


@contextmanager
def adapters_off(engine: Engine) -> Iterator[SidPolicy]:
    """Provide an engine's generation model without its adapters."""
    with engine.generation_model() as policy, without_adapters(policy.lm):
        yield policy


def learning_rate(progress: float, peak: float, warmup_rate: float) -> float:
    """Return the learning rate at a point of training: linear warm-up over the first share, then cosine decay to 0.

    Args:
        progress: share of the training that is done after this step, in (0, 1].
    """
    if progress < warmup_rate:
        return peak * progress / warmup_rate
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup_rate) / (1 - warmup_rate)))
