"""Folders of images, one for each domain and class."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lightning_da.data.base import SPLITS, UNKNOWN, DataError, DomainPairDataModule, Roles
from lightning_da.data.splits import Indices, split_indices
from lightning_da.errors import list_choices

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""The last bytes of a complete file."""


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """One split of one domain, read from image files.

    Args:
        root: Folder of the domains.
        names: Paths of the files, relative to `root`.
        labels: Shape (n,); `UNKNOWN` (-1) where the class is not known.
        classes: Names of the classes, label 0 first.
        transform: Makes a float tensor (3, height, width) of an RGB image.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Indices,
        classes: Sequence[str],
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.root, self.names, self.y = root, list(names), torch.from_numpy(labels)
        self.classes, self.transform = list(classes), transform

    @property
    def files(self) -> list[str]:
        """Path of each image, in the order of samples."""
        return [str(self.root / name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_image(self.root / self.names[index])), int(self.y[index])

    def fingerprint(self) -> str:
        """A digest of the paths below `root` and of the sizes of the files, without reading them."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name}\0{(self.root / name).stat().st_size}\n".encode())
        return digest.hexdigest()


class ImageFolders(DomainPairDataModule):
    """Two domains of images in folders, `root/<domain>/<class>/*`, as of Office-31, Office-Home or DomainNet.

    Files are known by their suffix; sub-folders of a class are read too, other and hidden files are not.
    Images are converted to RGB, the shorter side is scaled to `resize`, and the middle is cut out.

    Images that lie directly in the folder of a domain have no label; a target with no others is unlabelled.

    A domain whose only folders are `train`, `test` and, optionally, `val` comes with its splits,
    `root/<domain>/<split>/<class>/*`. Otherwise the images are split by `seed`, stratified by class.

    Args:
        root: Folder of the domains.
        source: Folder of the domain with labels, below `root`.
        target: Folder of the domain to transfer to, below `root`.
        batch_size: Samples of each domain in a batch, on each process.
        image_size: Height and width of a sample in pixels.
        resize: Length that the shorter side is scaled to; None takes 8/7 of `image_size`, 256 for 224.
        mean: Subtracted from each channel, of values in [0, 1]; the default is ImageNet's.
        std: Each channel is divided by it; the default is ImageNet's.
        augment: Whether to train on random crops, at random scale, mirrored at random.
        protocol: `split` trains and tests on different images. `all` takes all images of a domain as each of
            its splits: the transductive protocol of the Office benchmarks, which adapts to the very images,
            without their labels, that it is tested on. Figures of the two do not compare, and with `all` the
            source is validated and tested on what it was trained on.
        num_workers: Processes that read images, for each domain.
        seed: Seed of splitting.
        val_share: Share of the validation images, of all or, where there are only `train` and `test`, of `train`.
        test_share: Share of the test images.
    """

    def __init__(
        self,
        root: str,
        source: str,
        target: str,
        batch_size: int = 32,
        image_size: int = 224,
        resize: int | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augment: bool = True,
        protocol: Literal["split", "all"] = "split",
        num_workers: int = 4,
        seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.2,
    ) -> None:
        super().__init__(source, target, batch_size)
        self.root, self.image_size, self.resize = Path(root), image_size, resize or round(image_size * 8 / 7)
        if self.resize < image_size:
            raise DataError(
                f"data.init_args.resize ({resize}) is less than image_size ({image_size}), which is cut out of it"
            )
        self.mean, self.std, self.augment, self.protocol = mean, std, augment, protocol
        self.seed, self.val_share, self.test_share = seed, val_share, test_share
        self.num_workers = num_workers
        self.predicted = ("test",) if protocol == "all" else SPLITS
        self._domains: dict[str, dict[str, ImageFiles]] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Three channels, height and width."""
        return (3, self.image_size, self.image_size)

    def dataset(self, domain: str, split: str) -> ImageFiles:
        if domain not in self._domains:
            self._domains[domain] = self._list(domain)
        return self._domains[domain][split]

    def check(self, roles: Roles = Roles()) -> None:  # noqa: B008
        """Checks, before those of the base class, that every file of both domains is a complete image.

        The header and the end of each file are read, and the whole file where these leave a doubt.

        Raises:
            DataError: If a file is not a readable image.
        """
        for domain in (self.source, self.target):
            files = sorted({file for split in SPLITS for file in self.dataset(domain, split).files})
            with ThreadPoolExecutor() as pool:
                faults = list(chain.from_iterable(pool.map(_faults, (files[i::64] for i in range(64)))))
            if faults:
                more = f" (and {len(faults) - 1} more files of domain {domain!r})" if len(faults) > 1 else ""
                raise DataError(f"{min(faults)}{more}")
        super().check(roles)

    def _list(self, domain: str) -> dict[str, ImageFiles]:
        """The three splits of a domain."""
        folder = self.root / domain
        if not folder.is_dir():
            raise DataError(
                f"no folder {str(folder)!r} for domain {domain!r}; "
                f"{list_choices(folder.name, _folders(folder.parent))} (data.init_args.root, source, target)"
            )
        parts = [""]
        if _folders(folder) and set(_folders(folder)) <= set(SPLITS):
            parts = _folders(folder)
            if not {"train", "test"} <= set(parts):
                raise DataError(
                    f"domain {domain!r}: {str(folder)!r} has {' and '.join(parts)} only, but splits are given as "
                    "train, test and, optionally, val"
                )
        images = [(part, name) for part in parts for name in _images(folder / part)]
        class_names = [name.split("/")[0] if "/" in name else "" for _, name in images]
        classes = sorted({name for part in parts for name in _folders(folder / part)})
        self._check_listing(domain, folder, classes, class_names)
        codes = {name: label for label, name in enumerate(classes)} | {"": UNKNOWN}
        labels = np.array([codes[name] for name in class_names], dtype=np.int64)
        names = [Path(domain, part, name).as_posix() for part, name in images]
        given = np.array([part for part, _ in images]) if parts != [""] else None
        splits = split_indices(labels, self.seed, self.val_share, self.test_share, given)
        if self.protocol == "all":
            splits = dict.fromkeys(SPLITS, np.arange(len(names)))
        return {
            split: ImageFiles(self.root, [names[i] for i in indices], labels[indices], classes, self._transform(split))
            for split, indices in splits.items()
        }

    def _check_listing(self, domain: str, folder: Path, classes: Sequence[str], class_names: Sequence[str]) -> None:
        if not class_names:
            raise DataError(f"domain {domain!r}: no image in {str(folder)!r}; read are {' '.join(SUFFIXES)}")
        empty = sorted(set(classes) - set(class_names))
        if empty:
            raise DataError(
                f"domain {domain!r}: no image of class {empty[0]!r} in {str(folder)!r}; remove the folder or put "
                f"images there (read are {' '.join(SUFFIXES)})"
            )
        if len(classes) == 1:
            raise DataError(
                f"domain {domain!r}: {classes[0]!r} is the only class in {str(folder)!r}; if the classes are the "
                f"folders below it, name the domain '{domain}/{classes[0]}'"
            )

    def _transform(self, split: str) -> Callable[[Image.Image], Tensor]:
        crop = [v2.Resize(self.resize), v2.CenterCrop(self.image_size)]
        if split == "train" and self.augment:
            crop = [v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        transform: Callable[[Image.Image], Tensor] = v2.Compose([v2.PILToTensor(), *crop, *scale])
        return transform


def read_image(path: Path) -> Image.Image:
    """Reads an image as RGB; grey images of 16 bits keep their upper eight.

    Raises:
        DataError: If the file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("pixels are floating-point numbers of unknown range")
            if image.mode.startswith("I"):
                grey = np.asarray(image).clip(0, 2**16 - 1) // 2**8
                return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds
        raise DataError(f"{path}: not a readable image ({error}); remove or replace it") from error


def _faults(files: Sequence[str]) -> list[str]:
    """What is wrong with the files that cannot be read."""
    faults = []
    for file in files:
        try:
            if not _looks_complete(file):
                read_image(Path(file))
        except DataError as error:
            faults.append(str(error))
    return faults


def _looks_complete(file: str) -> bool:
    """Whether a file starts and ends as its format does; False where that takes more to know."""
    try:
        with open(file, "rb") as stream, Image.open(stream) as image:
            end = ENDS.get(image.format or "")
            if end is None:
                return False
            stream.seek(-len(end), os.SEEK_END)
            return stream.read() == end
    except Exception:  # reading it in full says why
        return False


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _images(folder: Path) -> list[str]:
    """Paths of the images in a folder and its sub-folders, relative to it, sorted, without hidden ones."""
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        inner = Path(place).relative_to(folder)
        names += [(inner / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(names)
