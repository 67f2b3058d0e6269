"""What fit and test pay at their start for many images, and what their loading processes hold in memory.

    python benchmarks/start.py --out results [--images 60000 600000]

Measures what the data module does before the first batch: it lists, checks and digests two domains. Each start is a
process of its own, with an empty memory of earlier checks (first) and again (second); starts on many and on 400 images
alternate. Up to 60,000 images are files of their own, more are hard links to 400 files; the system's file cache is
warm. Prints median seconds, of the clock and of the processor. Memory is the proportional set size (PSS) of two loading
processes after 32,000 samples: pages that processes share are divided among them.
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
                path.hardlink_to(few[i % len(few)])
            else:
                Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    part.rename(folder)
    return folder


def start(root: Path, command: str) -> None:
    """Prints the seconds of a start, of the clock and of the processor."""
    from lightning_da.data import ImageFolders, Roles  # noqa: PLC0415  # in a process of its own

    clock, processor = time.perf_counter(), time.process_time()
    data = ImageFolders(str(root), "one", "two", image_size=28, num_workers=0)
    if command == "fit":
        data.check(Roles())
    else:
        data.setup("test")
    data.fingerprint()
    print(time.perf_counter() - clock, time.process_time() - processor)


def memory(root: Path) -> None:
    """Prints the PSS of two loading processes in MB."""
    from lightning_da.data import ImageFolders  # noqa: PLC0415

    data = ImageFolders(str(root), "one", None, batch_size=100, image_size=28, num_workers=2)
    loader = data._train_loader("source", labels=True)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in itertools.islice(epochs, READ // 100):
        pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    held = [Path(f"/proc/{child}/smaps_rollup").read_text().split("\nPss:")[1].split()[0] for child in children]
    print(" ".join(f"{int(kilobytes) / 1000:.0f}" for kilobytes in held))


def child(*words: object) -> list[float]:
    command = [sys.executable, __file__, *map(str, words)]
    return [float(word) for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[60_000, 600_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, root = given.child[0], Path(given.child[1])
        memory(root) if what == "memory" else start(root, what)
        return
    out = given.out.absolute()
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    out.mkdir(parents=True, exist_ok=True)
    roots = [images(out, number) for number in [SMALL, *given.images]]
    kinds = {"first fit": "fit", "second fit": "fit", "test": "test"}
    found: dict[tuple[Path, str], list[list[float]]] = {(root, kind): [] for root in roots for kind in kinds}
    for _ in range(given.rounds):
        shutil.rmtree(out / "cache", ignore_errors=True)
        for kind, command in kinds.items():
            for root in roots:
                found[root, kind].append(child("--child", command, root))
    for root in roots:
        print(f"{root.name} images")
        for kind in kinds:
            clock, processor = (statistics.median(values) for values in zip(*found[root, kind], strict=True))
            print(f"  {kind:10} {clock:6.2f} s, of the processor {processor:6.2f} s")
        print(f"  PSS of the loading processes: {child('--child', 'memory', root)} MB", flush=True)


if __name__ == "__main__":
    main()
