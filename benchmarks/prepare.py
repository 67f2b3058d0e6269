"""Turns a folder of shared data sets into files that the readers of the project take.

    python benchmarks/prepare.py --data-root FOLDER --out FOLDER

writes `mnist.npz` and `mnist_m.npz` (for FeatureTables, colour images of 28 x 28 pixels, train and test) and
`office_caltech10/<domain>/<class>/*.jpg` (for ImageFolders). What is there already is not written again.
"""

import argparse
import tarfile
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


def mnist(root: Path, out: Path) -> None:
    with np.load(root / "mnist" / "mnist.npz") as file:
        arrays = {key: file[key] for key in file}
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
    for name, make in (("mnist.npz", mnist), ("mnist_m.npz", mnist_m), ("office_caltech10", office)):
        if (given.out / name).exists():
            print(f"{name} is there already")
        else:
            make(given.data_root, given.out)
            print(f"{name} written")


if __name__ == "__main__":
    main()
