from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward sums over processes what each of them makes of this process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
        ctx.sizes = [int(size) for size in sizes]
        padded = x.new_zeros(max(ctx.sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in ctx.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return torch.split(total, ctx.sizes)[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes in the order of rank, with gradient; `x` itself where there is one process.

    A loss of the gathered rows that every process computes has, after the averaging of gradients over processes, the
    gradient of one process that holds the whole batch.

    Args:
        x: Shape (n, ...), n may differ between processes, the rest may not.

    Returns:
        Shape (sum of n, ...).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered
