"""Whether images from shards are read as fast as a network learns from them, and in constant memory.

    python benchmarks/streaming.py --out results

Speed: images of 500 x 375 pixels are read with the augmentation of training, by as many loading processes as there are
CPU cores, from shards and from files, while the network rests; then ResNet-18 takes training steps on batches that are
in memory, while the loader rests. These alternate. What was read is dropped from the system's file cache before each
round. Memory: the proportional set size (PSS) of the process and of its four loading processes in the course of one
pass over 50,000 images of two domains, and the part of it that files have: the code of libraries, which is shared with
all programs that use them, so that it grows when another one ends.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.models import resnet18

from lightning_da.data import ImageFolders, StreamedImages
from lightning_da.data.shards import write_shards

CORES = len(os.sched_getaffinity(0))
BATCH = 32
DIFFERENT = 500
"""Images of a class that differ; more are links to them."""


def domains(root: Path, each: int, size: tuple[int, int]) -> Path:
    """Two domains of two classes of photo-like noise, as files and as shards; returns their folder."""
    rng = np.random.default_rng(0)
    for domain, label in itertools.product(("one", "two"), range(2)):
        folder = root / domain / f"class{label}"
        if (root / "shards" / domain).is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(each):
            path = folder / f"{i:06}.jpg"
            if i >= DIFFERENT:
                path.symlink_to(f"{i % DIFFERENT:06}.jpg")
            else:
                noise = Image.fromarray(rng.integers(256, size=(*size[::-1], 3), dtype=np.uint8))
                noise.filter(ImageFilter.GaussianBlur(1)).save(path, quality=90)
        if label:
            write_shards(root / domain, root / "shards" / domain)
    return root


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(step: Callable[[], object], images: int, seconds: float) -> float:
    """Images a second."""
    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return steps * images / (time.perf_counter() - start)


def speed(root: Path, rounds: int, seconds: float) -> None:
    torch.set_num_threads(CORES)
    network = resnet18(num_classes=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    x, y = torch.randn(BATCH, 3, 224, 224), torch.randint(2, (BATCH,))

    def learn() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    def batches(kind: type[ImageFolders], folder: Path) -> Iterator[Any]:
        data = kind(str(folder), "one", None, batch_size=BATCH, protocol="all", num_workers=CORES)
        loader = data._train_loader("source", labels=True)
        return itertools.chain.from_iterable(itertools.repeat(loader))

    found: dict[str, list[float]] = {"network": [], "shards": [], "files": []}
    for _ in range(rounds):
        found["network"].append(rate(learn, BATCH, seconds))
        for name, kind, folder in (("shards", StreamedImages, root / "shards"), ("files", ImageFolders, root)):
            drop_from_cache(folder / "one")
            reading = batches(kind, folder)
            found[name].append(rate(lambda reading=reading: next(reading), BATCH, seconds))  # type: ignore[misc]
            del reading
        print(" ".join(f"{name} {rates[-1]:.1f}" for name, rates in found.items()), "images/s", flush=True)
    for name in ("shards", "files"):
        ratios = [loader / network for loader, network in zip(found[name], found["network"], strict=True)]
        print(f"{name} / network: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def held(kind: str) -> list[int]:
    """MB of this process and of each of its children; `kind` is a line of /proc/PID/smaps_rollup."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    texts = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in ("self", *children)]
    return [int(text.split(f"\n{kind}:")[1].split()[0]) // 1000 for text in texts]


def memory(root: Path) -> None:
    data = StreamedImages(
        str(root / "shards"), "one", "two", batch_size=100, image_size=32, protocol="all", num_workers=2
    )
    size = sum(path.stat().st_size for path in (root / "shards").rglob("*.bin"))
    print(f"{2 * len(data.dataset('one', 'train'))} images, {size / 1e9:.1f} GB")
    for step, _ in enumerate(data.train_dataloader(), start=1):
        if step % 50 == 0:
            print(f"after {200 * step} images: PSS {held('Pss')} MB, of files {held('Pss_File')} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    speed(domains(given.out / "large", DIFFERENT, (500, 375)), given.rounds, given.seconds)
    memory(domains(given.out / "many", 12_500, (160, 120)))


if __name__ == "__main__":
    main()
