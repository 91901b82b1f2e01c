"""DeepSpeed behind the protocol of `digr.policy.training.engine.Engine`, on gloo and on nccl.

ZeRO-3 partitions each weight, and gathers it by hooks on the modules, which all workers must call in the same order. Generation
cannot guarantee this order, so the engine keeps a second model without hooks: a copy of all weights on each worker, in the
precision of training. It must fit into memory together with the worker's partitions; larger models cannot be trained.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from digr.config.policy import TrainConfig
from digr.policy.model import SidPolicy
from digr.policy.training.engine import TrainState, adapters_off, evaluated, policy_of
from jobs.training.deepspeed_state import gather_state, scatter_state


class DeepSpeedEngine:
    """One worker of DeepSpeed's data parallelism; the process group must exist already."""

    def __init__(
        self,
        train: TrainConfig,
        module: SidPolicy,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        reference: SidPolicy | None = None,
    ) -> None:
        import deepspeed

        # DeepSpeed would compile a shared-memory all-reduce at its first start: a minute, and a C++ compiler that a
        # laptop may lack. Gloo, which the process group already has, does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.reference = None if reference is None else _cast(reference.eval().requires_grad_(False), train)
        self.twin = _empty_copy(module, train) if train.zero_stage == 3 else None
        self.in_twin: nn.Module | None = None
        config = _deepspeed_config(train, max_grad_norm)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, dist_init_required=False, config=config)
        if self.twin is None:
            return
        for parameter in module.head.parameters():  # the policy reads them itself, see `SidPolicy.token_logits`
            deepspeed.zero.register_external_parameter(module, parameter)
        if self.reference is not None:
            deepspeed.zero.Init(module=self.reference, config_dict_or_path=config)  # partitions the weights, without hooks

    @property
    def module(self) -> nn.Module:
        """The module that is trained."""
        return self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module through DeepSpeed."""
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss, averaged over the workers."""
        self.engine.backward(loss)

    def step(self, lr: float) -> None:
        """Clip, update, clear."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        self.in_twin = None

    def total(self, values: Tensor) -> Tensor:
        """Sum over the workers; the result is on the CPU."""
        result = values.detach().clone().to(self.engine.device)
        dist.all_reduce(result)
        return result.cpu()

    def generation_model(self) -> AbstractContextManager[SidPolicy]:
        """Provide the module itself, or under ZeRO-3 the second model with its weights."""
        policy = policy_of(self)
        return evaluated(policy) if self.twin is None else self._gathered(policy, self.twin)

    def reference_model(self) -> AbstractContextManager[SidPolicy]:
        """Provide the reference, under ZeRO-3 the second model with its weights; or the generation model without adapters."""
        if self.reference is None:
            return adapters_off(self)
        return nullcontext(self.reference) if self.twin is None else self._gathered(self.reference, self.twin)

    @contextmanager
    def _gathered(self, source: SidPolicy, twin: SidPolicy) -> Iterator[SidPolicy]:
        """Copy the weights into the second model, one by one, unless it already has them."""
        import deepspeed

        if self.in_twin is not source:
            for parameter, copied in zip(source.parameters(), twin.parameters(), strict=True):
                with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter]):
                    copied.copy_(parameter)
            self.in_twin = source
        yield twin

    def save(self, folder: Path) -> None:
        """Gather all partitions and write them from the first worker, independent of number of workers and ZeRO stage."""
        state = gather_state(self.engine)
        if self.rank == 0:
            state.write(folder)

    def load(self, folder: Path) -> None:
        """Restore this worker's part."""
        scatter_state(self.engine, TrainState.read(folder, self.module))
        self.in_twin = None


def _deepspeed_config(train: TrainConfig, max_grad_norm: float) -> dict[str, Any]:
    offload = {"offload_optimizer": {"device": "cpu"}} if train.offload != "none" else {}
    offload |= {"offload_param": {"device": "cpu"}} if train.offload == "all" else {}
    return {
        # the loop sizes batches itself; `step` ends the accumulation, however many `backward` came before it
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": train.zero_stage} | offload,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": train.precision == "bf16"},
    }


def _cast(policy: SidPolicy, train: TrainConfig) -> SidPolicy:
    """Cast a policy's weights to the precision of training; buffers keep theirs, as in DeepSpeed."""
    for parameter in policy.parameters() if train.precision == "bf16" else ():
        parameter.data = parameter.data.bfloat16()
    return policy


def _empty_copy(policy: SidPolicy, train: TrainConfig) -> SidPolicy:
    """Copy a policy without the values of its weights, in the precision of training."""
    memo: dict[int, Any] = {id(policy.tokenizer): policy.tokenizer}
    for parameter in policy.parameters():
        dtype = torch.bfloat16 if train.precision == "bf16" else parameter.dtype
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, dtype=dtype), requires_grad=False)
    return copy.deepcopy(policy, memo).eval()
