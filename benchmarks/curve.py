"""What the transferability curve of a network costs beside the forward passes that it needs.

    python benchmarks/curve.py --samples 1000
    python benchmarks/curve.py --model vit_tiny_patch16_224 --samples 200

Random images of both domains go through a timm model with random weights: once alone, and once with every layer
read (of a ResNet all residual blocks), measured, with bands and null floors. Memory is the peak of the process above
the model, and on a GPU that of the device as well.
"""

import argparse
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_da.data import DomainPairDataModule, TensorDomain
from lightning_da.data.base import DOMAINS
from lightning_da.methods import FineTune
from lightning_da.networks.backbones import TimmBackbone
from lightning_da.transferability.depth import DEFAULT_MEASURES, depth_table
from lightning_da.transferability.features import collect


class Images(DomainPairDataModule):
    """Random images of 224 x 224 pixels, those of the target darker."""

    def __init__(self, samples: int, batch_size: int) -> None:
        super().__init__("light", "dark", batch_size)
        self.samples = samples

    def dataset(self, domain: str, split: str) -> TensorDomain:  # noqa: ARG002
        generator = torch.Generator().manual_seed(len(domain))
        x = torch.randint(256 if domain == "light" else 128, (self.samples, 3, 224, 224), generator=generator)
        return TensorDomain(x.to(torch.uint8), torch.arange(self.samples) % 10, [str(i) for i in range(10)])


def resident() -> float:
    """Memory of the process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the work returns, its seconds, and the peak of memory above its start in MB."""
    start, peak, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - before
    done.set()
    watcher.join()
    return result, seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="name of a timm model (default: resnet50)")
    parser.add_argument("--samples", type=int, default=1000, help="images of each domain (default: 1000)")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    data = Images(given.samples, given.batch_size)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, devices=1)
    model = FineTune(num_classes=10, input_shape=(3, 224, 224), backbone=lambda s: TimmBackbone(s, given.model)).eval()
    model.to(trainer.strategy.root_device)
    stages = [(name, model.backbone.get_submodule(name)) for name in model.backbone.layers]
    blocks = [f"{name}.{child}" for name, stage in stages for child, _ in stage.named_children() if child.isdigit()]
    layers = [*(blocks or model.backbone.layers), "bottleneck", "head"]

    @torch.no_grad()
    def forward() -> None:
        for domain in DOMAINS:
            for x, _ in data.sample_dataloader(domain, "val", given.samples):
                model(x.to(model.device))

    with torch.no_grad():
        model(torch.rand(given.batch_size, 3, 224, 224, device=model.device))
    for domain in DOMAINS:  # the data are made before the clock starts
        len(data.sample_dataloader(domain, "val", given.samples))
    _, alone, memory_alone = measured(forward)
    features, reading, memory_reading = measured(lambda: collect(trainer, model, data, layers, given.samples))
    _, computing, memory_computing = measured(lambda: depth_table(features, DEFAULT_MEASURES))
    print(f"{given.model}, {len(layers)} layers, {given.samples} + {given.samples} images, {model.device.type}")
    print(f"forward passes alone: {alone:.1f} s, {memory_alone:.0f} MB")
    print(f"with every layer read: {reading:.1f} s, {memory_reading:.0f} MB")
    print(f"measures: {computing:.1f} s, {memory_computing:.0f} MB")
    print(f"ratio: {(reading + computing) / alone:.2f}")
    if model.device.type == "cuda":
        print(f"device: {torch.cuda.max_memory_allocated() / 2**20:.0f} MB at most, model included")


if __name__ == "__main__":
    main()
