"""How long fit and test take to start on many images, and what their loading processes hold in memory.

    python benchmarks/start.py --out results [--images 60000 600000]

A fit of one step and its test run on 400 images and on each larger number, with an empty cache and again. Up to 60,000
images are files of their own, more are symbolic links to 400 files. Prints the seconds of each command and the
difference to 400 images. Memory is the proportional set size (PSS) of two loading processes after 32,000 samples: pages
that processes share are divided among them.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SMALL, FILES = 400, 60_000
CLASSES = 10
READ = 32_000


def images(root: Path, number: int) -> Path:
    """Two domains with ten classes of noise, 32 x 32 pixels; returns their folder."""
    folder = root / str(number)
    if folder.is_dir():
        return folder
    part, rng = root / f"{number}.part", np.random.default_rng(number)
    shutil.rmtree(part, ignore_errors=True)
    each = number // (2 * CLASSES)
    for place in [Path(domain, f"class{label}") for domain in ("one", "two") for label in range(CLASSES)]:
        (part / place).mkdir(parents=True)
        few = sorted((root / str(SMALL) / place).glob("*")) if number > FILES else []
        for i in range(each):
            path = part / place / f"{i:06}.jpg"
            if few:
                path.symlink_to(few[i % len(few)])
            else:
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    part.rename(folder)
    return folder


def seconds(command: str, root: Path) -> float:
    words = ["--config", "method/dann.yaml", "--config", "data/image_folders.yaml", f"--data.root={root}"]
    words += ["--data.source=one", "--data.target=two", "--data.image_size=28", "--data.num_workers=2"]
    words += ["--model.backbone=LeNet", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.limit_val_batches=0", "--trainer.limit_test_batches=2", "--trainer.callbacks=[]"]
    words += ["--trainer.max_steps=1", f"--name=n{root.name}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lightning_da", command, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def memory(root: Path) -> None:
    """Prints the PSS of two loading processes in MB."""
    from lightning_da.data import ImageFolders  # noqa: PLC0415  # in a process of its own

    data = ImageFolders(str(root), "one", None, batch_size=100, image_size=28, num_workers=2)
    loader = data._train_loader("source", labels=True)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in itertools.islice(epochs, READ // 100):
        pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    held = [Path(f"/proc/{child}/smaps_rollup").read_text().split("\nPss:")[1].split()[0] for child in children]
    print(" ".join(f"{int(kilobytes) / 1000:.0f}" for kilobytes in held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[60_000, 600_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        memory(given.memory)
        return
    out = given.out.absolute()
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}", "XDG_CACHE_HOME": str(out / "cache")}
    out.mkdir(parents=True, exist_ok=True)
    roots = [images(out, number) for number in [SMALL, *given.images]]
    seconds("fit", roots[0])  # Python's own caches
    base: dict[str, float] = {}
    for root in roots:
        found: dict[str, list[float]] = {"first fit": [], "second fit": [], "test": []}
        for _ in range(given.rounds):
            shutil.rmtree(out / "cache", ignore_errors=True)
            for kind, values in found.items():
                values.append(seconds(kind.split()[-1], root))
        print(f"{root.name} images")
        for kind, values in found.items():
            middle = statistics.median(values)
            base.setdefault(kind, middle)
            print(f"  {kind:10} {middle:6.1f} s ({min(values):.1f} to {max(values):.1f}), {middle - base[kind]:+.1f} s")
        command = [sys.executable, __file__, "--memory", str(root)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(f"  PSS of the loading processes: {said} MB", flush=True)


if __name__ == "__main__":
    main()
