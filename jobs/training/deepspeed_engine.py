"""DeepSpeed behind the protocol of `digr.policy.training.engine.Engine`, on gloo and on nccl."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from digr.config.policy import TrainConfig
from digr.policy.training.engine import TrainState
from jobs.training.deepspeed_state import gather_state, scatter_state


class DeepSpeedEngine:
    """One worker of DeepSpeed's data parallelism; the process group must exist already."""

    def __init__(self, train: TrainConfig, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        import deepspeed

        # DeepSpeed would compile a shared-memory all-reduce at its first start: a minute, and a C++ compiler that a
        # laptop may lack. Gloo, which the process group already has, does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.zero_stage = train.zero_stage
        offload = {"offload_optimizer": {"device": "cpu"}} if train.offload != "none" else {}
        offload |= {"offload_param": {"device": "cpu"}} if train.offload == "all" else {}
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                # the loop sizes batches itself; `step` ends the accumulation, however many `backward` came before it
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "managed_gradient_accumulation": False,
                "gradient_clipping": max_grad_norm,
                "zero_optimization": {"stage": train.zero_stage} | offload,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "bf16": {"enabled": train.precision == "bf16"},
            },
        )

    @property
    def module(self) -> nn.Module:
        """The module itself."""
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

    def total(self, values: Tensor) -> Tensor:
        """Sum over the workers; the result is on the CPU."""
        result = values.detach().clone().to(self.engine.device)
        dist.all_reduce(result)
        return result.cpu()

    def whole(self) -> AbstractContextManager[None]:
        """Gather the weights that ZeRO-3 keeps in pieces."""
        if self.zero_stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.module.parameters()))

    def save(self, folder: Path) -> None:
        """Gather all parts and write them from the first worker, free of the number of workers and of the ZeRO stage."""
        state = gather_state(self.engine)
        if self.rank == 0:
            state.write(folder)

    def load(self, folder: Path) -> None:
        """Restore this worker's part."""
        scatter_state(self.engine, TrainState.read(folder, self.module))
