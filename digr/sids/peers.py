"""Communication between the workers of a data-parallel fit; also works for a single process."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class Peers(NamedTuple):
    """A worker and its process group. All workers must make the same calls in the same order.

    Workers hold different rows of the data and the same model. They draw the same random numbers, so they compute the same
    results from exchanged values.
    """

    rank: int = 0
    size: int = 1

    def total(self, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Sum over the workers."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def longest(self, length: int, device: torch.device) -> int:
        """Return the largest of the workers' numbers."""
        found = torch.tensor(length, device=device)
        if self.size > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def gather(self, rows: Float[Tensor, "N C"]) -> Float[Tensor, "M C"]:
        """Return the rows of all workers in the order of workers; their numbers of rows may differ."""
        if self.size == 1:
            return rows
        most = self.longest(len(rows), rows.device)
        # workers can only exchange equal shapes, so rows are padded and the last column marks real ones
        mine = torch.zeros(most, rows.shape[1] + 1, device=rows.device)
        mine[: len(rows), :-1], mine[: len(rows), -1] = rows, 1
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        both = torch.cat(parts)
        return both[both[:, -1] == 1, :-1].contiguous()

    def average_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its mean over the workers, in one exchange."""
        if self.size > 1:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, (flat / self.size).split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def follow_first(self, model: nn.Module) -> None:
        """Copy the first worker's weights and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)
