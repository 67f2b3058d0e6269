"""Turns a folder of shared data sets into files that the readers of the project take.

    python benchmarks/prepare.py --data-root FOLDER --out FOLDER

writes, for FeatureTables, images of 28 x 28 pixels with their training and test splits: `mnist.npz` and `mnist_m.npz`
in colour, `grey/mnist.npz` and `grey/usps.npz`, and `sampled_<seed>/` with the same but 2,000 training images of MNIST
and 1,800 of USPS (the protocol of Long et al. 2013; further 500 are for validation). For ImageFolders it writes
`office_caltech10/<domain>/<class>/*.jpg`. What is there already is not written again.
"""

import argparse
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE = 32


def tiles(path: Path, number: int) -> NDArray[np.uint8]:
    """The middle 28 x 28 pixels of the first tiles of a mosaic, shape (number, 28, 28, 3)."""
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = mosaic.shape[0] // TILE, mosaic.shape[1] // TILE
    parts = mosaic.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    return parts[:number, 2:30, 2:30]


def save(path: Path, arrays: dict[str, Any]) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.rename(path)


def load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return {key: file[key] for key in file}


def grey(root: Path, out: Path) -> None:
    part = out / "grey.part"
    part.mkdir(exist_ok=True)
    save(part / "mnist.npz", load(root / "mnist" / "mnist.npz"))
    usps = load(root / "usps" / "usps.npz")
    for key in ("x_train", "x_test"):
        pixels = (usps[key].reshape(-1, 16, 16) * 255).round().astype(np.uint8)
        usps[key] = np.stack(
            [np.asarray(Image.fromarray(x).resize((28, 28), Image.Resampling.BILINEAR)) for x in pixels]
        )
    save(part / "usps.npz", usps)
    part.rename(out / "grey")


def sampled(root: Path, out: Path, seed: int) -> None:  # noqa: ARG001
    part = out / f"sampled_{seed}.part"
    part.mkdir(exist_ok=True)
    for name, number in (("mnist", 2000), ("usps", 1800)):
        arrays = load(out / "grey" / f"{name}.npz")
        order = np.random.default_rng([seed, number]).permutation(len(arrays["y_train"]))
        chosen = {"train": order[:number], "val": order[number : number + 500]}
        drawn = {f"{kind}_{split}": arrays[f"{kind}_train"][rows] for split, rows in chosen.items() for kind in "xy"}
        save(part / f"{name}.npz", arrays | drawn)
    part.rename(out / f"sampled_{seed}")


def mnist(root: Path, out: Path) -> None:
    arrays = load(root / "mnist" / "mnist.npz")
    colour = {key: np.repeat(value[..., None], 3, axis=3) for key, value in arrays.items() if key.startswith("x")}
    save(out / "mnist.npz", arrays | colour)


def mnist_m(root: Path, out: Path) -> None:
    with np.load(root / "mnist_m" / "labels.npz") as file:
        labels = {"train": file["train_00"], "test": file["test_00"]} if "train_00" in file else dict(file)
    arrays = {}
    for split in ("train", "test"):
        y = next(value for key, value in labels.items() if split in key)
        arrays[f"x_{split}"] = tiles(root / "mnist_m" / f"{split}_00.webp", len(y))
        arrays[f"y_{split}"] = y[: len(arrays[f"x_{split}"])]
    save(out / "mnist_m.npz", arrays)


def office(root: Path, out: Path) -> None:
    folder = out / "office_caltech10"
    part = out / "office_caltech10.part"
    for tar in sorted((root / "office_caltech10_images").glob("*.tar")):
        with tarfile.open(tar) as archive:
            archive.extractall(part, filter="data")
    part.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Path, Path], None]] = {
        "mnist.npz": mnist,
        "mnist_m.npz": mnist_m,
        "office_caltech10": office,
        "grey": grey,
    }
    makers |= {f"sampled_{seed}": partial(sampled, seed=seed) for seed in range(5)}
    for name, make in makers.items():
        if (given.out / name).exists():
            print(f"{name} is there already")
        else:
            make(given.data_root, given.out)
            print(f"{name} written")


if __name__ == "__main__":
    main()
