"""Samples and numbers of all processes."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T", list[Any], Tensor)


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward sums, over processes, the gradients of this process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
        lengths = [int(size) for size in sizes]
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        # rank r of N has the rows r, r + N, ... of the whole
        places = torch.cat([rank + len(lengths) * torch.arange(length) for rank, length in enumerate(lengths)])
        order = places.argsort().to(x.device)
        ctx.own = (order.argsort().split(lengths))[dist.get_rank()]
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.own]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, with gradient; `x` itself in one process.

    The samplers deal rows in turn: rank r of N has the rows r, r + N, ... of a batch. The rows come back in the order
    of the whole batch, as one process would have them. A loss of these rows that every process computes has, after the
    averaging of gradients over processes, the gradient of one process with the whole batch.

    Args:
        x: Shape (n, ...), n may differ between processes, the rest may not.

    Returns:
        Shape (sum of n, ...).
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient; `x` itself in one process.

    Args:
        x: Any shape, the same in every process.
    """
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def mean_over_processes(summed: Tensor, number: Tensor | int) -> Tensor:
    """What this process adds to the mean of a loss over the samples of all processes.

    Gradients are averaged over processes, so that the shares have the gradient of the mean together.

    Args:
        summed: Sum of the losses of this process's samples, scalar.
        number: How many samples these are, int64; if there are none in any process, the result is 0.

    Returns:
        A scalar; its mean over processes is the mean over all samples.
    """
    number = number if isinstance(number, Tensor) else torch.tensor(number, device=summed.device)
    return summed * world_size() / total(number).clamp(min=1)


def share(items: T) -> T:
    """The items or rows that fall to this process where every process has the same ones and they are dealt in turn."""
    return items[dist.get_rank() :: dist.get_world_size()] if world_size() > 1 else items
