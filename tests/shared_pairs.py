"""A joint MMD whose pairs are shared among processes. Each of them imports this file, so it imports little."""

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_da.gather import gather
from lightning_da.losses.mmd import Estimator, GaussianKernel, joint_mmd, null_distribution


class Counted(GaussianKernel):
    """Five kernels that count the distances that they are given."""

    seen = 0

    def __init__(self) -> None:
        super().__init__((0.25, 0.5, 1.0, 2.0, 4.0))

    def forward(self, distances: Tensor, median: Tensor) -> Tensor:
        self.seen += distances.numel()
        return super().forward(distances, median)


def discrepancy(rows: slice, estimator: Estimator) -> tuple[Tensor, ...]:
    """Value, gradients of the rows, null distribution, and the number of distances, in this process."""
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (700, 500)]
    own = [x[rows].requires_grad_() for x in samples]
    source, target = ([gather(x), gather(x)[:, :2].exp()] for x in own)
    kernels = [Counted().double(), GaussianKernel((1.7,), of_median=False).double()]
    value = joint_mmd(source, target, kernels, estimator, shared=True)
    seen = torch.tensor(kernels[0].seen)
    null = null_distribution(source, target, kernels, estimator, permutations=5, shared=True)
    return value.detach(), *torch.autograd.grad(value, own), null, seen


def work(rank: int, folder: str, processes: int, estimator: Estimator) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    torch.save(discrepancy(slice(rank, None, processes), estimator), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
