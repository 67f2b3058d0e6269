"""Image folders: one for each domain and class, or one for each class."""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lightning_da.data.base import SPLITS, UNKNOWN, DataError, DomainPairDataModule, Selection
from lightning_da.data.image_files import SUFFIXES, Listing, find_damaged, list_images, read_image
from lightning_da.data.splits import SPLIT_FOLDERS, Indices, split_indices
from lightning_da.errors import check_range, list_choices
from lightning_da.inputs import Images
from lightning_da.names import Names

FEW = 10
"""Number of files whose content tells whether one domain is a copy of another."""


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """One split of one domain, read from image files.

    Args:
        folder: Folder of the domain.
        prefix: What the names of the samples begin with, for example `amazon/`.
        files: The files, with names relative to `folder`.
        labels: Shape (n,); `UNKNOWN` (-1) where the class is unknown.
        classes: Class names in the order of the labels.
        transform: Function from an RGB image to a float tensor (3, height, width).
        reads: How a model outside of this project reads an image; None if it cannot repeat the transform.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        files: Listing,
        labels: Indices,
        classes: Sequence[str],
        transform: Callable[[Image.Image], Tensor],
        reads: Images | None = None,
    ) -> None:
        self.reads = reads
        self.folder, self.prefix, self.y = folder, prefix, torch.from_numpy(labels)
        self.classes, self.transform = list(classes), transform
        self._names, self._sizes = files.names, files.sizes
        self._digest = ""

    @property
    def names(self) -> list[str]:
        """Name of each image: its path below the folder of the domains."""
        return [self.prefix + os.fsdecode(name) for name in self._names.tolist()]

    @property
    def files(self) -> list[str]:
        """Path of each image, in the order of samples."""
        return [str(self._path(index)) for index in range(len(self))]

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self._names[index])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.read(index)), int(self.y[index])

    def read(self, index: int) -> Image.Image:
        """The image of a sample, as it is stored."""
        return read_image(self._path(index))

    def unscaled(self, index: int) -> Tensor:
        """A sample as `reads` gives it."""
        assert self.reads is not None
        return self.reads.read(self.read(index))

    def has_same_files(self, other: "ImageFiles") -> bool:
        """Whether another split has files of the same names and sizes, and the same first `FEW` images."""
        if not (np.array_equal(self._names, other._names) and np.array_equal(self._sizes, other._sizes)):
            return False
        few = range(min(FEW, len(self)))
        return all(np.array_equal(np.asarray(self.read(index)), np.asarray(other.read(index))) for index in few)

    def fingerprint(self) -> str:
        """A digest of the file names and the file sizes; the files are not read."""
        if not self._digest:
            line = os.fsencode(self.prefix).replace(b"%", b"%%") + b"%b\0%d\n"
            lines = map(line.__mod__, zip(self._names.tolist(), self._sizes.tolist(), strict=True))
            self._digest = hashlib.sha256(b"".join(lines)).hexdigest()
        return self._digest


class ImageFolders(DomainPairDataModule):
    """Two domains of images in folders `root/<domain>/<class>/*`, for example Office-31, Office-Home or DomainNet.

    Without `source` and `target` there is one domain with labels, `root/<class>/*`; with one of the two names there is
    one domain, `root/<domain>/<class>/*`.

    Images are found by their suffix, also in sub-folders of a class and behind links; hidden files are ignored. Images
    are converted to RGB (see `image_files.read_image`), the shorter side is scaled to `resize`, and the centre is
    cropped.

    Every file is checked when its domain is listed. Files that were found complete are remembered in the folder
    `lightning_da` of `$XDG_CACHE_HOME` or ~/.cache, and are not read again until their size or time changes. A file
    that is damaged or deleted later, while the command runs, is an error.

    Images directly in the folder of a domain have no label; a target with only such images is unlabelled.

    If the only folders of a domain are `train`, `val` (or `valid`, `validation`) and `test`, or `train` and one of the
    others, they are its splits: `root/<domain>/<split>/<class>/*`. If there is only one beside `train`, it is the test
    split, and the images for validation are drawn from `train`. Without such folders the images are split with `seed`,
    stratified by class.

    Args:
        root: Folder of the domains.
        source: Folder of the domain with labels, below `root`, or several folders; None if there is one domain.
        target: Folder of the domain to transfer to, below `root`, or several folders; None if there is one domain.
        batch_size: Samples per batch and domain, on each process.
        image_size: Height and width of a sample in pixels.
        resize: Length of the shorter side after scaling; None means 8/7 of `image_size`, for example 256 for 224.
        mean: Mean of each channel, for values in [0, 1]; the default is ImageNet's.
        std: Standard deviation of each channel; the default is ImageNet's.
        augment: Whether to train with random crops, scales and horizontal flips.
        protocol: `split` uses different images for training and test. `all` uses all images of a domain in each split:
            the transductive protocol of the Office benchmarks, in which training reads the unlabelled target images
            that are tested later. Results of the two protocols are not comparable. With `all`, source accuracies, and
            target accuracies of methods that read target labels, are those of training images.
        damaged: `refuse` ends the command if a file is no complete image; `skip` leaves such files out of their split
            and says how many. The other images stay in their splits.
        num_workers: Processes that read images, for each domain.
        seed: Seed of the splits.
        val_share: Fraction of images for validation; if there are two folders of splits, a fraction of `train`.
        test_share: Fraction of images for test.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    def __init__(
        self,
        root: str,
        source: Names | None = None,
        target: Names | None = None,
        batch_size: int = 32,
        image_size: int = 224,
        resize: int | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augment: bool = True,
        protocol: Literal["split", "all"] = "split",
        damaged: Literal["refuse", "skip"] = "refuse",
        num_workers: int = 4,
        seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.2,
        **kwargs: Any,
    ) -> None:
        check_range("data.image_size", image_size, 1)
        check_range("data.num_workers", num_workers, 0)
        check_range("data.std", std, above=0)
        folder = Path(root).absolute()
        self._one_folder = source is None and target is None
        if self._one_folder:
            target, folder = folder.name, folder.parent
        super().__init__(source, target, batch_size, **kwargs)
        self.root, self.image_size, self.resize = (
            folder,
            image_size,
            round(image_size * 8 / 7) if resize is None else resize,
        )
        if self.resize < image_size:
            raise DataError(f"data.resize ({resize}) is less than data.image_size ({image_size}), the size of the crop")
        self.mean, self.std, self.augment, self.protocol = mean, std, augment, protocol
        self.seed, self.val_share, self.test_share = seed, val_share, test_share
        self.damaged, self.num_workers = damaged, num_workers
        self.predicted = ("test",) if protocol == "all" else SPLITS
        self._domains: dict[str, dict[str, ImageFiles]] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(3, height, width)."""
        return (3, self.image_size, self.image_size)

    def dataset(self, domain: str, split: str) -> ImageFiles:
        if domain not in self._domains:
            self._domains[domain] = self._list(domain)
        return self._domains[domain][split]

    def _evaluated(self, domain: str, split: str) -> Any:
        plain = copy.copy(self._get(domain, split))  # training images are not augmented
        files = plain
        if isinstance(plain, Selection):  # with labels of other class sets
            files = plain.whole = copy.copy(plain.whole)
        files.transform = self._transform("test")
        return plain

    def _list(self, domain: str) -> dict[str, ImageFiles]:
        """Lists the images in the three splits of a domain."""
        folder = self.root / domain
        if not folder.is_dir():
            raise DataError(
                f"no folder {str(folder)!r} for domain {domain!r}; "
                f"{list_choices(folder.name, _folders(folder.parent))} (--data.root, --data.source, --data.target)"
            )
        parts, inner = [""], self._folders(domain)
        if inner and set(inner) <= set(SPLIT_FOLDERS):
            parts = inner
            if "train" not in parts or len(parts) < 2 or len({SPLIT_FOLDERS[part] for part in parts}) < len(parts):
                raise DataError(
                    f"domain {domain!r}: {str(folder)!r} has {' and '.join(parts)} only; predefined splits need the "
                    "folder train, and val or test or both"
                )
        files = self._files(domain, parts)
        if self._one_folder:
            self._check_no_domains(domain, inner, files.names)
        found, of_file = np.unique(_folders_of(files.names, depth=int(parts != [""])), return_inverse=True)
        classes = sorted({name for part in parts for name in self._folders(domain, part)})
        self._check_listing(domain, folder, classes, set(map(os.fsdecode, found.tolist())))
        codes = {os.fsencode(name): label for label, name in enumerate(classes)} | {b"": UNKNOWN}
        labels = np.array([codes[name] for name in found.tolist()], dtype=np.int64)[of_file]
        given = None
        if parts != [""]:
            split_of = SPLIT_FOLDERS if len(parts) > 2 else dict.fromkeys(parts, "test") | {"train": "train"}
            given = np.array([split_of[name.decode()] for name in _folders_of(files.names).tolist()])
        splits = split_indices(labels, self.seed, self.val_share, self.test_share, given)
        if self.protocol == "all":
            splits = dict.fromkeys(SPLITS, np.arange(len(labels)))
        damaged = self._find_damaged(domain, files)
        splits = {split: indices[~np.isin(indices, damaged)] for split, indices in splits.items()}
        prefix = Path(domain, "_").as_posix()[:-1]
        reads = None
        if type(self)._transform is ImageFolders._transform:  # a transform of another class may do anything
            reads = Images((self.image_size, self.image_size), 3, self.resize, self.mean, self.std)
        return {
            split: self._images(
                domain, rows, prefix, files.select(rows), labels[rows], classes, self._transform(split), reads
            )
            for split, rows in splits.items()
        }

    def _folders(self, domain: str, part: str = "") -> list[str]:
        """Sorted names of the folders in the folder of a domain, or in a folder of it."""
        return _folders(self.root / domain / part)

    def _files(self, domain: str, parts: Sequence[str]) -> Listing:
        """The images of a domain."""
        return list_images(self.root / domain, parts)

    def _images(self, domain: str, rows: Indices, *arguments: Any) -> ImageFiles:  # noqa: ARG002  # read by name here
        """The images of a split, `rows` of the listing; for the other arguments see `ImageFiles`."""
        return ImageFiles(self.root / domain, *arguments)

    def _find_damaged(self, domain: str, files: Listing) -> list[int]:
        """Indices of the files that are left out because they are damaged."""
        damaged = find_damaged(self.root / domain, files)
        if damaged and self.damaged == "refuse":
            more = f" (and {len(damaged) - 1} more files of domain {domain!r})" if len(damaged) > 1 else ""
            raise DataError(f"{next(iter(damaged.values()))}{more}, or leave such files out with --data.damaged skip")
        if damaged:
            self.left_out[domain] = len(damaged)
            rank_zero_warn(
                f"domain {domain!r}: {len(damaged)} of {len(files.names)} images are damaged and left out; the first: "
                f"{next(iter(damaged.values()))}"
            )
        return list(damaged)

    def _check_listing(self, domain: str, folder: Path, classes: Sequence[str], class_names: set[str]) -> None:
        if not class_names:
            raise DataError(f"domain {domain!r}: no image in {str(folder)!r} (suffixes: {' '.join(SUFFIXES)})")
        empty = sorted(set(classes) - class_names)
        if empty:
            raise DataError(
                f"domain {domain!r}: no image of class {empty[0]!r} in {str(folder)!r}; remove the folder or put "
                f"images there (suffixes: {' '.join(SUFFIXES)})"
            )
        if len(classes) == 1:
            raise DataError(
                f"domain {domain!r}: {classes[0]!r} is the only class in {str(folder)!r}; if the class folders are "
                f"inside it, use the domain name '{domain}/{classes[0]}'"
            )

    def _check_no_domains(self, domain: str, folders: Sequence[str], names: NDArray[np.bytes_]) -> None:
        """Refuses a folder of domains: its folders have the same folders, and no image beside them."""
        if set(folders) <= set(SPLIT_FOLDERS) or len(folders) < 2:
            return
        inner = [self._folders(domain, name) for name in folders]
        if inner[0] and inner.count(inner[0]) == len(inner) and not (np.strings.count(names, b"/") == 1).any():
            raise DataError(
                f"{self.root / domain}: its folders {', '.join(map(repr, folders[:5]))} have the same folders, like "
                f"domains with classes; name two domains, for example --data.source {folders[0]} --data.target "
                f"{folders[1]}, or one"
            )

    def _transform(self, split: str) -> Callable[[Image.Image], Tensor]:
        crop = [v2.Resize(self.resize), v2.CenterCrop(self.image_size)]
        if split == "train" and self.augment:
            crop = [v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        transform: Callable[[Image.Image], Tensor] = v2.Compose([v2.PILToTensor(), *crop, *scale])
        return transform


def _folders_of(names: NDArray[np.bytes_], depth: int = 0) -> NDArray[np.bytes_]:
    """A folder of each path, the first one at depth 0; empty if a path has no such folder."""
    if not len(names):  # `partition` takes no empty array
        return names
    for _ in range(depth):
        names = np.strings.partition(names, b"/")[2]
    folders, slash, _ = np.strings.partition(names, b"/")
    return np.where(slash == b"/", folders, b"")


def _folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, without hidden folders."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
