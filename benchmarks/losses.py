"""Time and memory of the domain losses, forward and backward, beside other ways to compute them.

    python benchmarks/losses.py --n 64 256 1024 4096 --d 64 256 2048 --processes 1 2 4 --figure docs/losses.png

n is the number of samples of each domain. `joint` is JAN's loss of a layer of d features and ten probabilities,
`adversarial` DANN's with its discriminator.

Times are medians over rounds in which all implementations take turns. Peak memory is what a fresh process needs above
its inputs (Linux only). `broadcast` forms the differences of all pairs, (2n, 2n, d), with five kernels; `coral, d x d`
forms both covariances. The peers, pytorch-adapt and skada, are measured where they are installed (`pip install -c
constraints.txt '.[benchmarks]'`). A size at which a loss needs a tensor of more than `--limit` bytes is skipped.

With `--processes` it also measures steps of the largest n and the middle d in processes of one thread: a linear layer
on the samples of the process, the loss of the samples of all, and the backward pass. With more processes than cores,
elapsed time says little: the time is the CPU time of a process. Time and memory are those of the process that needs
the most. `alone` is the loss of whose pairs each process computes all.
"""

import argparse
import functools
import importlib
import importlib.util
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_da.gather import gather
from lightning_da.losses.adversarial import domain_classification
from lightning_da.losses.coral import coral, covariance
from lightning_da.losses.mmd import PAPER_BANDWIDTHS, Estimator, GaussianKernel, joint_mmd, mmd

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


def joint(source: Tensor, target: Tensor) -> Tensor:
    s, t = ([x, x[:, :10].softmax(dim=1)] for x in (source, target))
    return joint_mmd(s, t, [GaussianKernel((0.25, 0.5, 1, 2, 4)), GaussianKernel((1.68,), of_median=False)])


PLAIN: dict[str, Loss] = {
    "broadcast, 5 kernels": broadcast,
    "coral": coral,
    "coral, d x d": wide_coral,
    "joint": joint,
}


def make(name: str) -> Loss:
    """A loss by name. The modules of a peer are imported only if the loss is asked for."""
    if name in PLAIN:
        return PLAIN[name]
    if name == "adversarial":
        discriminator = nn.Sequential(nn.LazyLinear(100), nn.ReLU(), nn.Linear(100, 1))
        return functools.partial(domain_classification, discriminator=discriminator)
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
    ours = ["unbiased", "biased", "joint", "linear", "learned beta", "coral", "coral, d x d", "adversarial"]
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


def start_of_peak() -> float:
    """The resident memory in MB; the peak begins here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def extra_memory(name: str, n: int, d: int, threads: int) -> float:
    """Peak above the resident memory before the call, in MB, without the setup of a first call."""
    torch.set_num_threads(threads)
    loss = make(name)
    once(loss, *inputs(32, d))
    source, target = inputs(n, d)
    before = start_of_peak()
    once(loss, source, target)
    return _status("VmHWM") - before


class Row(NamedTuple):
    """Time and memory of a loss at a size; with several processes, of the one that takes the most."""

    n: int
    d: int
    processes: int
    loss: str
    ms: float
    mb: float


def by_size(ns: list[int], ds: list[int], seconds: float, limit: float, threads: int) -> Iterator[Row]:
    fresh = multiprocessing.get_context("spawn")
    for n, d in itertools.product(ns, ds):
        losses = {name: make(name) for name in names(n, d, limit)}
        source, target = inputs(n, d)
        first = {name: once(loss, source, target) for name, loss in losses.items()}
        times: dict[str, list[float]] = {name: [] for name in losses}
        for turn in range(30):
            for name, loss in losses.items():
                if turn == 0 or turn * first[name] < seconds:
                    times[name].append(once(loss, source, target))
        for name, taken in times.items():
            with fresh.Pool(1) as pool:
                memory = pool.apply(extra_memory, (name, n, d, threads))
            yield Row(n, d, 1, name, 1000 * statistics.median(taken), memory)


SHARED: dict[str, Loss] = {
    name: functools.partial(lambda s, t, shared: joint_mmd([s], [t], [GaussianKernel()], shared=shared), shared=shared)
    for name, shared in (("unbiased", True), ("unbiased, alone", False))
} | {"coral": coral}


def step(rank: int, processes: int, name: str, n: int, d: int, store: str) -> tuple[float, float]:
    """CPU seconds and peak MB of a step with a loss, in one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    network = nn.parallel.DistributedDataParallel(nn.Linear(d, d))
    taken, peaks = [], []
    for size in (32, n, n, n):  # the first has the setup of a first call
        source, target = (x.detach()[rank::processes] for x in inputs(size, d))
        dist.barrier()
        before, start = start_of_peak(), time.process_time()
        features = network(torch.cat([source, target])).split([len(source), len(target)])
        SHARED[name](*(gather(x) for x in features)).backward()
        taken.append(time.process_time() - start)
        peaks.append(_status("VmHWM") - before)
    dist.destroy_process_group()
    return statistics.median(taken[1:]), max(peaks[1:])


def by_processes(numbers: list[int], n: int, d: int) -> Iterator[Row]:
    fresh = multiprocessing.get_context("spawn")
    for processes, name in itertools.product(numbers, SHARED):
        with tempfile.TemporaryDirectory() as folder, fresh.Pool(processes) as pool:
            tasks = [(rank, processes, name, n, d, f"{folder}/store") for rank in range(processes)]
            seconds, memory = map(max, zip(*pool.starmap(step, tasks, chunksize=1), strict=True))
        yield Row(n, d, processes, f"step, {name}", 1000 * seconds, memory)


def draw(rows: list[Row], path: str) -> None:
    """Time and memory over n, over d and over the number of processes."""
    sizes = [row for row in rows if not row.loss.startswith("step")]
    ns, ds = sorted({row.n for row in sizes}), sorted({row.d for row in sizes})
    n, d = ns[len(ns) // 2], ds[len(ds) // 2]
    columns: list[tuple[str, list[Row], str]] = [
        (f"samples of each domain, d = {d}", [row for row in sizes if row.d == d], "n"),
        (f"features, n = {n}", [row for row in sizes if row.n == n], "d"),
    ]
    if shares := [row for row in rows if row.loss.startswith("step")]:
        columns.append((f"processes, n = {shares[0].n}, d = {shares[0].d}", shares, "processes"))
    figure = Figure(figsize=(4 * len(columns), 7), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    for (label, shown, x), pair in zip(columns, axes.T, strict=True):
        for axis, (y, unit) in zip(
            pair, (("ms", "time (ms)"), ("mb", "peak memory above the inputs (MB)")), strict=True
        ):
            for name in dict.fromkeys(row.loss for row in shown):
                points = [(getattr(row, x), max(getattr(row, y), 0.1)) for row in shown if row.loss == name]
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            axis.set(xscale="log", xlabel=label, ylabel=unit)
            if x == "processes":
                axis.set_ylim(bottom=0)
            else:
                axis.set_yscale("log")
            ticks = sorted({getattr(row, x) for row in shown})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        pair[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--d", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="numbers of processes that share a step")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for a loss at a size, at most 30 rounds")
    parser.add_argument("--limit", type=float, default=4.5e9, help="bytes that a single tensor may have")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", help="file for a figure of all that was measured")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{'n':>5} {'d':>5} {'processes':>9}  {'loss':24} {'ms':>9} {'MB':>8}")
    rows = []
    measured = by_size(given.n, given.d, given.seconds, given.limit, given.threads)
    for row in itertools.chain(
        measured, by_processes(given.processes, max(given.n), sorted(given.d)[len(given.d) // 2])
    ):
        print(f"{row.n:5} {row.d:5} {row.processes:9}  {row.loss:24} {row.ms:9.2f} {row.mb:8.1f}", flush=True)
        rows.append(row)
    if given.figure:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
