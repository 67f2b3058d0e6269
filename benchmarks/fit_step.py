"""What a step of `fit` costs beside a bare PyTorch loop of the same network on the same number of images.

Both train LeNet on the same 2 B images a step with the same optimizer. They alternate in one process, and the ratio is
taken pair by pair, since the speed of a machine drifts:

    python benchmarks/fit_step.py --steps 300 --rounds 7
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from functools import partial

import lightning as L
import torch
from torch.nn.functional import cross_entropy

from lightning_da.data import Digits
from lightning_da.methods import FineTune
from lightning_da.networks.backbones import LeNet
from lightning_da.tracking import Tracker

BACKBONE = partial(LeNet, batch_norm=True)
ADAM = partial(torch.optim.Adam, lr=1e-3)


class Clock(L.Callback):
    """Seconds from the first step to the last, without the start and the end of a fit."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self.seconds = time.perf_counter() - self.start


def fit(data: Digits, steps: int) -> float:
    clock = Clock()
    trainer = L.Trainer(
        max_steps=steps,
        logger=Tracker("benchmarks", run_name="fit_step"),
        callbacks=[clock],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=True,
        enable_model_summary=False,
    )
    model = FineTune(num_classes=10, input_shape=data.input_shape, backbone=BACKBONE, optimizer=ADAM)
    trainer.fit(model, data)
    return clock.seconds


def bare(data: Digits, steps: int) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    domain = data.dataset(data.source, "train")
    model = FineTune(num_classes=10, input_shape=data.input_shape, backbone=BACKBONE).to(device)
    optimizer = ADAM(model.parameters())
    start = time.perf_counter()
    done = 0
    while done < steps:
        order = torch.randperm(len(domain))
        for indices in order.split(data.batch_size)[: len(domain) // data.batch_size]:
            x = domain.x[indices].to(device).float().div_(255)
            loss = cross_entropy(model(x), domain.y[indices].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64, help="B; both sides train on 2 B images a step")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    data = Digits(batch_size=2 * given.batch_size)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        fit(data, 20)
        bare(data, 20)
        for _ in range(given.rounds):
            ours, theirs = fit(data, given.steps), bare(data, given.steps)
            ratios.append(ours / theirs)
            per_step = (1000 * ours / given.steps, 1000 * theirs / given.steps)
            print(f"fit {per_step[0]:.2f} ms a step, bare {per_step[1]:.2f} ms, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
