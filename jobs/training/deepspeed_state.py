"""Gather and scatter DeepSpeed's weights and optimiser state, so that a checkpoint fits any number of workers and ZeRO stage.

DeepSpeed's own checkpoints have one part per worker and can be loaded only by the same number of workers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from digr.policy.training.engine import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


def gather_state(engine: Any) -> TrainState:
    """Gather the partitions of all workers, parameter by parameter, on the first worker's CPU; other workers get an empty state.

    All workers must call it. One parameter at a time is in memory twice.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer, state, first = _torch_optimizer(engine), TrainState({}, {}), torch.distributed.get_rank() == 0
    flat = _flat_parts(engine)
    _link_moments(engine)
    steps = {float(optimizer.state[part][STEP]) for part in flat if STEP in optimizer.state[part]}
    for name, parameter in _trained(engine):
        if not flat:  # ZeRO-0 in fp32 is PyTorch's own optimiser
            weight, moments = parameter.detach(), dict(optimizer.state[parameter])
        else:
            weight = safe_get_full_fp32_param(parameter)
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS} if steps else {}
            moments |= {STEP: torch.tensor(max(steps))} if steps else {}
        if first:
            state.weights[name] = weight.float().cpu()
            state.moments[name] = {key: value.float().cpu() for key, value in moments.items()}
    return state


def scatter_state(engine: Any, state: TrainState) -> None:
    """Load this worker's partition; all workers must call it."""
    optimizer, flat = _torch_optimizer(engine), _flat_parts(engine)
    first = next(iter(state.moments.values()))
    if first and flat:  # DeepSpeed makes optimiser state only in its first step
        for part in flat:
            optimizer.state[part] = {key: torch.zeros_like(part) for key in MOMENTS} | {STEP: first[STEP].clone()}
        _link_moments(engine)
    for name, parameter in _trained(engine):
        moments = state.moments[name]
        if not flat:
            parameter.data.copy_(state.weights[name])
            device = parameter.device
            optimizer.state[parameter] = {key: value.to(device) if value.ndim else value for key, value in moments.items()}
        elif hasattr(parameter, "ds_id"):
            _scatter_zero3(parameter, state.weights[name], moments)
        else:
            _scatter(parameter, state.weights[name], moments)


def _scatter(parameter: Any, weight: Tensor, moments: Mapping[str, Tensor]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    parameter.data.copy_(weight)
    safe_set_full_fp32_param(parameter, weight)
    for key in MOMENTS if moments else ():
        safe_set_full_optimizer_state(parameter, moments[key], key)


def _scatter_zero3(parameter: Any, weight: Tensor, moments: Mapping[str, Tensor]) -> None:
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(weight)

    def own(whole: Tensor) -> Tensor:
        size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
        padded = torch.nn.functional.pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
        return padded[size * rank : size * (rank + 1)]

    safe_set_local_fp32_param(parameter, own(weight))
    for key in MOMENTS if moments else ():
        safe_set_local_optimizer_state(parameter, own(moments[key]), key)


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _flat_parts(engine: Any) -> list[Tensor]:
    """Return the flat fp32 parts of this worker, one per parameter group: ZeRO-3's, or ZeRO-1's and 2's; none without ZeRO."""
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups")
    return next((list(getattr(engine.optimizer, name)) for name in names if hasattr(engine.optimizer, name)), [])


def _link_moments(engine: Any) -> None:
    """Link each parameter to its moments (ZeRO-1 and 2); DeepSpeed 0.19 does this only for its first group."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    optimizer = engine.optimizer
    for parameters, part in zip(getattr(optimizer, "bit16_groups", []), _flat_parts(engine), strict=False):
        lazy_init_hp_params_optimizer_state(parameters, part, optimizer.optimizer.state)
