"""Time and memory of the domain losses, forward and backward, beside other ways to compute them.

    python benchmarks/losses.py --n 64 256 1024 4096 --d 64 256 2048

Times are medians over rounds in which all implementations take turns. Peak memory is what a fresh process needs above
its inputs (Linux only). `broadcast` forms the differences of all pairs, (2n, 2n, d), with five kernels; `coral, d x d`
forms both covariances. The peers, pytorch-adapt and skada, are measured where they are installed (`pip install -c
constraints.txt '.[benchmarks]'`). A size at which a loss needs a tensor of more than `--limit` bytes is skipped.
"""

import argparse
import functools
import importlib
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lightning_da.losses.coral import coral, covariance
from lightning_da.losses.mmd import PAPER_BANDWIDTHS, Estimator, GaussianKernel, mmd

Loss = Callable[[Tensor, Tensor], Tensor]

KERNELS = [0.25, 0.5, 1.0, 2.0, 4.0]


def broadcast(source: Tensor, target: Tensor) -> Tensor:
    samples = torch.cat([source, target])
    distances = (samples[:, None] - samples).square().sum(dim=2)
    median = distances.detach().median()
    k = torch.stack([torch.exp(-distances / (b * median)) for b in KERNELS]).mean(dim=0)
    n = len(source)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def wide_coral(source: Tensor, target: Tensor) -> Tensor:
    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1] ** 2)


def make(name: str) -> Loss:
    """A loss by name. The modules of a peer are imported only if the loss is asked for."""
    if name == "broadcast, 5 kernels":
        return broadcast
    if name.startswith("coral"):
        return coral if name == "coral" else wide_coral
    if name.startswith("pytorch-adapt"):
        kind = "linear" if "linear" in name else "quadratic"
        layers = importlib.import_module("pytorch_adapt.layers")
        return cast(Loss, layers.MMDLoss(kernel_scales=torch.tensor(PAPER_BANDWIDTHS), mmd_type=kind))
    if name.startswith("skada"):
        return cast(Loss, importlib.import_module("skada.deep.losses").dan_loss)
    if name == "learned beta":
        kernel = GaussianKernel()

        def learning(source: Tensor, target: Tensor) -> Tensor:
            kernel.learn(source, target)
            return mmd(source, target, kernel, "linear")

        return learning
    return functools.partial(mmd, kernel=GaussianKernel(), estimator=cast(Estimator, name))


def names(n: int, d: int, limit: float) -> list[str]:
    ours = ["unbiased", "biased", "linear", "learned beta", "coral", "coral, d x d"]
    pairs = (2 * n) ** 2
    others = ["broadcast, 5 kernels"] if 4 * pairs * d <= limit else []
    if importlib.util.find_spec("pytorch_adapt") and 4 * pairs * 33 <= limit:
        others += ["pytorch-adapt quadratic", "pytorch-adapt linear"]
    if importlib.util.find_spec("skada") and importlib.util.find_spec("skorch") and 4 * pairs * d / 4 <= limit:
        others += ["skada"]
    return ours + others


def inputs(n: int, d: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    source, target = torch.randn(n, d), 1.1 * torch.randn(n, d) + 0.1
    return source.requires_grad_(), target.requires_grad_()


def once(loss: Loss, source: Tensor, target: Tensor) -> float:
    start = time.perf_counter()
    loss(source, target).backward()
    return time.perf_counter() - start


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def extra_memory(name: str, n: int, d: int, threads: int) -> float:
    """Peak above the resident memory before the call, in MB, without the setup of a first call."""
    torch.set_num_threads(threads)
    loss = make(name)
    once(loss, *inputs(32, d))
    source, target = inputs(n, d)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    once(loss, source, target)
    return _status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--d", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--seconds", type=float, default=3.0, help="time for a loss at a size, at most 30 rounds")
    parser.add_argument("--limit", type=float, default=4.5e9, help="bytes that a single tensor may have")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    fresh = multiprocessing.get_context("spawn")
    print(f"{'n':>5} {'d':>5}  {'loss':24} {'ms':>9} {'MB':>8}")
    for n in given.n:
        for d in given.d:
            losses = {name: make(name) for name in names(n, d, given.limit)}
            source, target = inputs(n, d)
            first = {name: once(loss, source, target) for name, loss in losses.items()}
            times: dict[str, list[float]] = {name: [] for name in losses}
            for turn in range(30):
                for name, loss in losses.items():
                    if turn == 0 or turn * first[name] < given.seconds:
                        times[name].append(once(loss, source, target))
            for name, seconds in times.items():
                with fresh.Pool(1) as pool:
                    memory = pool.apply(extra_memory, (name, n, d, given.threads))
                print(f"{n:5} {d:5}  {name:24} {1000 * statistics.median(seconds):9.2f} {memory:8.1f}", flush=True)


if __name__ == "__main__":
    main()
