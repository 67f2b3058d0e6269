"""What a training step of each method costs beside a source-only step on the same number of images.

A step is forward, losses, backward and optimizer. Source-only trains on 2 B labelled images, a method of adaptation on
B of each domain; they take turns step by step in one process, and the ratio is that of the medians:

    python benchmarks/method_step.py --network lenet --rounds 200
    python benchmarks/method_step.py --network resnet18 --rounds 20

DAN adapts three layers with 33 kernels and learned weights; the null floor that it logs is computed every 50 steps, as
in training, and counts with its mean. SHOT passes the images of the target alone. With one thread it is the processor's
time that counts, otherwise that of the clock.
"""

import argparse
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import lightning as L
import torch

from lightning_da.methods import (
    ADDA,
    CDAN,
    CMD,
    DAN,
    DANN,
    DHN,
    DLID,
    JAN,
    MCC,
    OSBP,
    PADA,
    SHOT,
    AdaptationModule,
    DeepCORAL,
    DomainConfusion,
    FineTune,
    LabelEfficient,
    TransferModule,
)
from lightning_da.networks.backbones import FeedForward, LeNet, TimmBackbone

NETWORKS: dict[str, tuple[Any, tuple[int, int, int], tuple[str, str, str]]] = {
    "lenet": (partial(LeNet, batch_norm=True), (1, 28, 28), ("fc1", "fc2", "head")),
    "resnet50": (partial(TimmBackbone, model="resnet50"), (3, 224, 224), ("model.layer3", "model.layer4", "head")),
    "resnet18": (partial(TimmBackbone, model="resnet18"), (3, 64, 64), ("model.layer3", "model.layer4", "head")),
}
LOG_EVERY = 50


def stepper(model: TransferModule, shape: tuple[int, ...], size: int) -> Callable[[], float]:
    """A function that trains for one step on `size` random images of each domain and returns its seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    model.to(device).log = model.log_dict = lambda *_args: None  # type: ignore[method-assign,assignment]
    if isinstance(model, ADDA | SHOT):
        model.initialise()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = {
        domain: (torch.rand(size, *shape, device=device), torch.arange(size, device=device) % 10)
        for domain in ("source", "target")
    }
    content = {domain: batch[domain] if domain in model.supervised else batch[domain][0] for domain in batch}

    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def step() -> float:
        start = clock()
        optimizer.zero_grad()
        model.training_step(content, 0).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64, help="B, images of each domain in a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    backbone, shape, layers = NETWORKS[given.network]
    network: dict[str, Any] = {"num_classes": 10, "input_shape": shape, "backbone": backbone}
    source_only = FineTune(**network)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "source_only.ckpt"
        torch.save({"state_dict": source_only.state_dict()}, start)
        methods: dict[str, TransferModule] = {
            "source_only": source_only,
            "dann": DANN(**network),
            "deep_coral": DeepCORAL(**network),
            "dan": DAN(layers=layers, **network),
            "jan": JAN(**network),
            "adda": ADDA(init_from=str(start), **network),
            "cmd": CMD(**network),
            "domain_confusion": DomainConfusion(**network),
            "cdan": CDAN(**network),
            "mcc": MCC(**network),
            "shot": SHOT(init_from=str(start), **network),
            "label_efficient": LabelEfficient(train_on="both", **network),
            "dlid": DLID(**network),
            "dhn": DHN(bottleneck=partial(FeedForward, hidden=[64], activation="tanh"), beta="uniform", **network),
            "osbp": OSBP(**network),
            "pada": PADA(**network),
        }
        sizes = {name: given.batch_size * (2 if name == "source_only" else 1) for name in methods}
        steps = {name: stepper(model, shape, sizes[name]) for name, model in methods.items()}
    logs = (
        patch.object(AdaptationModule, "domain_weight", 1.0),
        patch.object(TransferModule, "progress", 0.5),
        patch.object(AdaptationModule, "logs_now", new_callable=PropertyMock),
    )
    with logs[0], logs[1], logs[2] as logs_now:
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        floors: dict[str, list[float]] = {name: [] for name in methods}
        for turn in itertools.islice(itertools.count(-3), given.rounds + 3):
            logs_now.return_value = turn % LOG_EVERY == LOG_EVERY - 1
            for name, step in steps.items():
                (floors if logs_now.return_value else seconds)[name].append(step())
    base = statistics.median(seconds["source_only"][3:])
    print(f"{given.network}, {given.batch_size} + {given.batch_size} images, source-only {1000 * base:.1f} ms")
    for name in methods:
        plain = statistics.median(seconds[name][3:])
        logged = (statistics.median(floors[name]) - plain) / LOG_EVERY if floors[name] else 0.0
        whole = plain + logged
        rate = 2 * given.batch_size / whole
        print(f"{name:16} {1000 * whole:7.1f} ms  {rate:7.0f} images/s  ratio {whole / base:.2f}")


if __name__ == "__main__":
    main()
