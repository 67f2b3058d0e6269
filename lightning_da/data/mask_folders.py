"""Folders of images and masks, for segmentation."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_da.data.base import UNKNOWN, DataError, DomainPairDataModule, TensorDomain
from lightning_da.data.image_files import SUFFIXES, list_images, read_image
from lightning_da.data.splits import split_indices
from lightning_da.errors import check_range, list_choices, one_line
from lightning_da.inputs import Images
from lightning_da.names import Names

IMAGES, MASKS, UNLABELLED = "images", "masks", "unlabelled"
"""Folders of a domain."""
VOID = 255
"""Value of pixels without a class."""


class MaskFolders(DomainPairDataModule):
    """Images in `root/<domain>/images` and a mask of each in `root/<domain>/masks`, for example slices of two scanners.

    The mask of `images/p01/003.jpg` is `masks/p01/003.png`, a PNG of the size of the image, grey or with a palette,
    whose values are places in `classes`; 255 stands for no class. Images without a mask are in
    `root/<domain>/unlabelled`. Hidden files are ignored.

    Splits are drawn with `seed`. A patient is a folder directly below `images` or `unlabelled`: all images in it and in
    its sub-folders are in one split, and an image outside of such a folder is a patient of its own. Domains are split
    apart. All images are scaled to `image_size` and held in memory, masks to the nearest pixel.

    Args:
        root: Folder of the domains.
        classes: Name of each class of pixels, in the order of the values of masks, the background first.
        source: Folder of the domain with masks, below `root`, or several folders; None if there is one domain.
        target: Folder of the domain to transfer to, below `root`, or several folders; None if there is one domain.
        batch_size: Images per batch and domain, on each process.
        image_size: Height and width of an image in pixels.
        channels: 1 reads images as grey, 3 as RGB.
        seed: Seed of the splits.
        val_share: Fraction of patients for validation.
        test_share: Fraction of patients for test.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    masks = True

    def __init__(
        self,
        root: str,
        classes: list[str],
        source: Names | None = None,
        target: Names | None = None,
        batch_size: int = 16,
        image_size: int = 128,
        channels: int = 1,
        seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        check_range("data.image_size", image_size, 1)
        if channels not in (1, 3):
            raise DataError(f"data.channels: {channels} is neither 1 for grey images nor 3 for colours")
        if len(set(classes)) < max(2, len(classes)) or len(classes) > VOID:
            raise DataError(
                f"data.classes: name each class of pixels once, the background too, 2 to {VOID} classes, not {classes}"
            )
        self.root, self.image_size, self._parts = Path(root).absolute(), image_size, list(classes)
        self.channels, self.seed, self.val_share, self.test_share = channels, seed, val_share, test_share
        self._read: dict[str, dict[str, TensorDomain]] = {}

    def dataset(self, domain: str, split: str) -> TensorDomain:
        if domain not in self._read:
            self._read[domain] = self._splits(domain)
        return self._read[domain][split]

    def _splits(self, domain: str) -> dict[str, TensorDomain]:
        """Reads the images and masks of a domain, and splits them."""
        folder, names = self.root / domain, self._list(domain)
        reads = Images((self.image_size, self.image_size), self.channels)
        pictures, masks = [], []
        for name in names:
            image = read_image(folder / name)
            pictures.append(reads.read(image))
            masks.append(self._mask(folder, name, image.size))
        x, found = torch.stack(pictures), torch.stack(masks)
        labels = np.array([UNKNOWN if name.startswith(f"{UNLABELLED}/") else 0 for name in names])
        inner = [name.partition("/")[2] for name in names]
        _, first, group = np.unique([name.partition("/")[0] for name in inner], return_index=True, return_inverse=True)
        drawn = split_indices(labels[first], self.seed, self.val_share, self.test_share)
        rows = {split: np.flatnonzero(np.isin(group, groups)) for split, groups in drawn.items()}
        classes = self._parts if (labels != UNKNOWN).any() else []
        return {
            split: TensorDomain(
                x[own],
                torch.from_numpy(labels[own]),
                classes,
                [f"{domain}/{names[row]}" for row in own],
                reads,
                masks=found[own],
            )
            for split, own in rows.items()
        }

    def _list(self, domain: str) -> list[str]:
        """The images of a domain: their paths, which begin with one of the two folders."""
        folder = self.root / domain
        if not folder.is_dir():
            known = sorted(path.name for path in folder.parent.iterdir()) if folder.parent.is_dir() else []
            raise DataError(f"no folder {str(folder)!r} for domain {domain!r}; {list_choices(folder.name, known)}")
        parts = [part for part in (IMAGES, UNLABELLED) if (folder / part).is_dir()]
        names = [os.fsdecode(name) for name in list_images(folder, parts).names.tolist()] if parts else []
        if not names:
            raise DataError(
                f"domain {domain!r}: no image in {str(folder / IMAGES)!r} (suffixes: {' '.join(SUFFIXES)}); put images "
                f"there and their masks in {MASKS}, or images alone in {UNLABELLED}"
            )
        seen: dict[str, str] = {}
        for name in names:
            if (other := seen.setdefault(os.path.splitext(name)[0], name)) != name:
                raise DataError(
                    f"{folder / name}: {other!r} has the same name but for the suffix, and a mask can be of one only; "
                    "rename it"
                )
        return names

    def _mask(self, folder: Path, name: str, size: tuple[int, int]) -> Tensor:
        """The mask of an image, int16, `UNKNOWN` where a pixel has no class.

        Args:
            folder: Folder of the domain.
            name: Path of the image.
            size: Width and height of the image.
        """
        side = (self.image_size, self.image_size)
        if name.startswith(f"{UNLABELLED}/"):
            return torch.full(side, UNKNOWN, dtype=torch.int16)
        path = folder / MASKS / Path(name).relative_to(IMAGES).with_suffix(".png")
        if not path.is_file():
            raise DataError(f"{path}: there is no such mask for {name!r}; add it, or move the image to {UNLABELLED}")
        try:
            with Image.open(path) as image:
                values, drawn = np.asarray(image), image.size
        except Exception as error:  # Pillow's decoders raise exceptions of many kinds
            raise DataError(f"{path}: not a readable image ({one_line(error)}); replace it") from error
        if values.ndim != 2:
            raise DataError(f"{path}: a mask has one value a pixel, and this is a picture of colours; write it as grey")
        if drawn != size:
            raise DataError(
                f"{path}: the mask has {drawn[0]} x {drawn[1]} pixels, its image {size[0]} x {size[1]}; make both equal"
            )
        known: NDArray[np.bool_] = values != VOID
        if (wrong := values[known & ((values < 0) | (values >= len(self._parts)))]).size:
            raise DataError(
                f"{path}: value {wrong[0]} is no place in data.classes, 0 to {len(self._parts) - 1}; {VOID} stands for "
                "no class"
            )
        found = np.where(known, values.astype(np.int32), UNKNOWN).astype(np.int16)
        rows, columns = ((np.arange(to) + 0.5) * of // to for to, of in zip(side, found.shape, strict=True))
        return torch.from_numpy(found[np.ix_(rows.astype(int), columns.astype(int))])
