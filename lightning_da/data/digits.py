"""Digit images: three domains that need no download, and torchvision's data sets."""

import hashlib
import urllib.error
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_da.data.base import DOMAINS, DataError, DomainPairDataModule, TensorDomain
from lightning_da.errors import check_range, list_choices
from lightning_da.paths import cache_folder, write_whole

Digit = Literal["handwritten", "typeset", "photo", "mnist", "mnist-m", "usps", "svhn"]
Pixels = NDArray[np.uint8]

SIDE = 28
BOX = 20
"""Side of an enlarged handwritten digit in pixels, without its margin, as in MNIST."""
PRINT = 20
"""Side of a typeset digit in pixels before it is enlarged, which blurs it like a scan of small print."""
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmtt10",
)
"""Font files of matplotlib with different digits."""


class Digits(DomainPairDataModule):
    """A source and a target domain of digit images: ten classes, 28 x 28 pixels, values in [0, 1].

    Three domains need no download: `handwritten` (scikit-learn's 1,797 digits of 8 x 8 pixels), `typeset` (drawn with
    matplotlib's fonts with random typeface, size, shear, rotation and position) and `photo` (handwritten digits blended
    into crops of scikit-learn's two photographs, |digit - patch| in each channel). `mnist`, `usps` and `svhn` are
    torchvision's data sets; `mnist-m` blends MNIST into crops of photographs. If one domain has colour, the grey images
    of the other are repeated over three channels.

    torchvision's data sets keep their own test split; all other splits are drawn with `seed`. An image is in one split
    only, and so is a digit in the blended domains.

    Args:
        source: Domain with labels, or several; None: there is the target alone.
        target: Domain to transfer to, or several; None: there is the source alone.
        batch_size: Samples per batch and domain, on each process.
        num_typeset: Number of typeset digits, over all splits.
        root: Folder of torchvision's data sets.
        download: Whether to download missing data sets into `root`.
        photographs: Folder of photographs for `mnist-m` and `photo`; None uses scikit-learn's two photographs.
        seed: Seed of drawing, blending and splitting.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    def __init__(
        self,
        source: Digit | list[Digit] | None = "typeset",
        target: Digit | list[Digit] | None = "handwritten",
        batch_size: int = 64,
        num_typeset: int = 6000,
        root: str = "data",
        download: bool = False,
        photographs: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        check_range("data.num_typeset", num_typeset, 100)
        check_range("data.seed", seed, 0)
        self.num_typeset, self.root, self.download = num_typeset, root, download
        self.photographs, self.seed = photographs, seed

    def classes_of(self, domain: str) -> list[str]:  # noqa: ARG002
        """The ten digits."""
        return [str(digit) for digit in range(10)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, 28, 28), or (3, 28, 28) if one of the domains has colour."""
        return (3 if {"photo", "mnist-m", "svhn"} & set(self._every(DOMAINS)) else 1, SIDE, SIDE)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        if domain not in get_args(Digit):
            raise DataError(f"no digit domain {domain!r}; {list_choices(domain, get_args(Digit))}")
        images, labels = self._images(domain, split)
        x = torch.from_numpy(images).movedim(-1, 1).expand(-1, self.input_shape[0], -1, -1)
        return TensorDomain(x, torch.from_numpy(labels), self.classes_of(domain))

    def _images(self, domain: str, split: str) -> tuple[Pixels, NDArray[np.int64]]:
        """Images (n, 28, 28, 1 or 3) and labels (n,) in one split."""
        if domain in ("photo", "mnist-m"):
            digits, labels = self._images("handwritten" if domain == "photo" else "mnist", split)
            return blend(digits, load_photographs(self.photographs), self._generator(domain, split)), labels
        if domain == "handwritten":
            return _part(load_handwritten(), split, (0.7, 0.1), self._generator(domain))
        if domain == "typeset":
            return _part(load_typeset(self.num_typeset, self.seed), split, (0.7, 0.1), self._generator(domain))
        images, labels = self._torchvision(domain, train=split != "test")
        if split == "test":
            return images, labels
        return _part((images, labels), split, (0.9, 0.1), self._generator(domain))

    def _generator(self, *purpose: str) -> np.random.Generator:
        key = hashlib.sha256(" ".join(purpose).encode()).digest()
        return np.random.default_rng([self.seed, *key[:8]])

    def _torchvision(self, domain: str, train: bool) -> tuple[Pixels, NDArray[np.int64]]:
        sets = torchvision.datasets
        try:
            if domain == "svhn":
                data = sets.SVHN(f"{self.root}/svhn", "train" if train else "test", download=self.download)
                return _resize(data.data.transpose(0, 2, 3, 1)), data.labels.astype(np.int64)
            kind = {"mnist": sets.MNIST, "usps": sets.USPS}[domain]
            data = kind(f"{self.root}/{domain}", train=train, download=self.download)
        except (RuntimeError, urllib.error.URLError, OSError) as error:
            advice = "the download failed: is there a network?" if self.download else "set --data.download true"
            raise DataError(
                f"domain {domain!r}: torchvision finds no data set in {Path(self.root) / domain} "
                f"({error}); {advice}, or put its files there (--data.root)"
            ) from error
        return _resize(np.asarray(data.data)[..., None]), np.asarray(data.targets, dtype=np.int64)


def _part(
    samples: tuple[Pixels, NDArray[np.int64]],
    split: str,
    shares: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[Pixels, NDArray[np.int64]]:
    """One of three disjoint parts, after removing duplicates; `shares` are the fractions of train and val."""
    images, labels = samples
    rows = np.ascontiguousarray(images.reshape(len(images), -1))
    _, first = np.unique(rows.view(np.dtype((np.void, rows.shape[1]))), return_index=True)
    order = generator.permutation(np.sort(first))
    ends = np.cumsum([round(share * len(order)) for share in shares])
    train, val, test = np.split(order, ends)
    chosen = {"train": train, "val": val, "test": test}[split]
    return images[chosen], labels[chosen]


def _resize(images: Pixels, side: int = SIDE) -> Pixels:
    """Images (n, h, w, c) to (n, side, side, c), bilinear."""
    if images.shape[1:3] == (side, side):
        return images
    x: Tensor = torch.from_numpy(images).movedim(-1, 1).float()
    x = interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).byte().movedim(1, -1).numpy()


@cache
def load_handwritten() -> tuple[Pixels, NDArray[np.int64]]:
    """scikit-learn's digits, enlarged to 20 x 20 pixels and centred, as in MNIST.

    Returns:
        Images (1797, 28, 28, 1), white on black, and labels (1797,).
    """
    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)[..., None]
    images = np.pad(_resize(grey, BOX), ((0, 0), *[((SIDE - BOX) // 2,) * 2] * 2, (0, 0)))
    return images, digits.target.astype(np.int64)


@cache
def load_typeset(number: int, seed: int) -> tuple[Pixels, NDArray[np.int64]]:
    """The digits of `draw_typeset`, drawn once and kept in the cache.

    The file name contains a digest of this module and of the versions of matplotlib, numpy and pillow, so that a change
    of the drawing creates a new file.
    """
    drawn_by = [Path(__file__).read_text(), *(version(name) for name in ("matplotlib", "numpy", "pillow"))]
    digest = hashlib.sha256(" ".join(drawn_by).encode()).hexdigest()[:12]
    path = cache_folder() / f"typeset-{number}-{seed}-{digest}.npz"
    try:
        with np.load(path) as file:
            return file["images"], file["labels"]
    except Exception:  # missing, or broken: a broken file raises exceptions of many kinds
        images, labels = draw_typeset(number, seed)
    with suppress(OSError):  # without a writable cache the digits are drawn again
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part, part.open("wb") as whole:
            np.savez(whole, images=images, labels=labels)
    return images, labels


def draw_typeset(number: int, seed: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Blurred digits drawn with matplotlib's fonts, with random typeface, size, shear, rotation and position.

    Args:
        number: Number of images.
        seed: Equal seeds give equal images.

    Returns:
        Images (number, 28, 28, 1), white on black, and labels (number,).
    """
    generator = np.random.default_rng([seed, 1])
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts: dict[tuple[str, int], ImageFont.FreeTypeFont] = {}
    images = np.zeros((number, SIDE, SIDE, 1), dtype=np.uint8)
    labels = generator.integers(10, size=number)
    scale, middle = 2, SIDE
    for image, label in zip(images, labels, strict=True):
        key = (FACES[generator.integers(len(FACES))], int(generator.integers(34, 57)))
        if key not in fonts:
            fonts[key] = ImageFont.truetype(folder / f"{key[0]}.ttf", key[1])
        canvas = Image.new("L", (scale * SIDE, scale * SIDE))
        ImageDraw.Draw(canvas).text((middle, middle), str(label), font=fonts[key], fill=255, anchor="mm")
        angle, shear = generator.uniform(-0.2, 0.2), generator.uniform(-0.2, 0.2)
        shift = generator.uniform(-2 * scale, 2 * scale, size=2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [
            [1, shear],
            [0, 1],
        ]
        offset = middle - turn @ (middle + shift)
        matrix = (*turn[0], offset[0], *turn[1], offset[1])
        canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        small = canvas.resize((PRINT, PRINT), Image.Resampling.BOX)
        image[..., 0] = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return images, labels


@cache
def load_photographs(folder: str | None) -> tuple[Pixels, ...]:
    """The photographs (height, width, 3) in a folder, or scikit-learn's two photographs.

    Raises:
        DataError: If the folder holds no large enough picture, or an unreadable one.
    """
    if folder is None:
        return tuple(load_sample_images().images)
    photographs = []
    for path in sorted(Path(folder).glob("*.*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            try:
                photographs.append(np.asarray(Image.open(path).convert("RGB")))
            except OSError as error:
                raise DataError(f"{path}: not a readable picture ({error}); remove it") from error
    large = tuple(photograph for photograph in photographs if min(photograph.shape[:2]) >= SIDE)
    if not large:
        raise DataError(f"{folder}: no .jpg or .png of at least {SIDE} x {SIDE} pixels (--data.photographs)")
    return large


def blend(digits: Pixels, photographs: tuple[Pixels, ...], generator: np.random.Generator) -> Pixels:
    """Digits in front of random patches, |digit - patch| in each channel (Ganin et al., JMLR 2016, section 5.2.4).

    Args:
        digits: Shape (n, 28, 28, 1).
        photographs: Shapes (height, width, 3), at least 28 x 28.
        generator: Draws the photograph and the position of each patch.

    Returns:
        Shape (n, 28, 28, 3).
    """
    blended = np.empty((*digits.shape[:3], 3), dtype=np.uint8)
    for out, digit in zip(blended, digits, strict=True):
        photograph = photographs[generator.integers(len(photographs))]
        top, left = (generator.integers(side - SIDE + 1) for side in photograph.shape[:2])
        patch = photograph[top : top + SIDE, left : left + SIDE].astype(np.int16)
        out[:] = np.abs(digit.astype(np.int16) - patch)
    return blended
