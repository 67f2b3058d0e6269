"""Made slices of hearts in the pictures of two scanners, for segmentation."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from lightning_da.data.base import SPLITS, DataError, DomainPairDataModule, TensorDomain
from lightning_da.errors import check_range, list_choices
from lightning_da.names import Names

PARTS = ["background", "cavity", "wall"]
"""Classes of pixels: what is outside of the epicardium, inside of the endocardium, and between both."""
KINDS = {"normal": (0.64, 0.7), "dilated": (0.76, 0.8), "thick": (0.54, 0.6)}
"""Kinds of hearts, and the range of the radius of the endocardium as a fraction of that of the epicardium."""


class Scanner(NamedTuple):
    """How a scanner draws what it sees; brightness is in [0, 1].

    Attributes:
        blood: Brightness of blood, in both ventricles.
        wall: Brightness of the wall of the heart.
        chest: Brightness of what is around the heart.
        lung: Brightness of the lungs.
        noise: Deviation of the noise in both channels of the receiver.
        bias: Strength of the bias field, the logarithm of brightness that changes slowly over the picture.
    """

    blood: float
    wall: float
    chest: float
    lung: float
    noise: float
    bias: float


SCANNERS = {
    "scanner_a": Scanner(blood=0.85, wall=0.3, chest=0.55, lung=0.08, noise=0.03, bias=0.15),
    "scanner_b": Scanner(blood=0.6, wall=0.25, chest=0.4, lung=0.15, noise=0.06, bias=0.4),
}


class Hearts(DomainPairDataModule):
    """Slices across the left ventricle of made hearts: two ellipses, the endocardium inside of the epicardium.

    The right ventricle is drawn beside it, as bright as the cavity, and is background. The domains `scanner_a` and
    `scanner_b` draw other hearts with another contrast, noise and bias field. Noise is that of the magnitude of a
    complex signal (Gudbjartsson and Patz, "The Rician distribution of noisy MRI data", 1995).

    Args:
        source: Scanner with masks, `scanner_a`.
        target: Scanner to transfer to, `scanner_b`.
        batch_size: Images per batch and domain, on each process.
        labels: `masks`, for each pixel one of `background`, `cavity` and `wall`; or `classes`, the kind of the heart,
            `normal`, `dilated` or `thick`, to train a classifier whose layers a segmentation starts from.
        number: Images of each scanner, over all splits: .6 for training, .1 for validation and .3 for test.
        source_number: The same for a source alone; None takes `number`.
        size: Height and width of an image in pixels.
        seed: Seed of the images. Fewer images of the same seed are the first ones of more.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    def __init__(
        self,
        source: Names | None = "scanner_a",
        target: Names | None = "scanner_b",
        batch_size: int = 6,
        labels: Literal["masks", "classes"] = "masks",
        number: int = 200,
        source_number: int | None = None,
        size: int = 48,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        numbers = {"number": number} | ({} if source_number is None else {"source_number": source_number})
        for name, value in numbers.items():
            check_range(f"data.{name}", value, 10)
        check_range("data.size", size, 32)
        check_range("data.seed", seed, 0)
        self.masks, self.number, self.source_number = labels == "masks", number, source_number
        self.size, self.seed = size, seed

    def dataset(self, domain: str, split: str) -> TensorDomain:
        if domain not in SCANNERS:
            raise DataError(f"no domain {domain!r} of hearts; {list_choices(domain, SCANNERS)}")
        alone = domain in self.named["source"] and domain not in self.named["target"]
        number = self.source_number if alone and self.source_number is not None else self.number
        share = {"train": number * 6 // 10, "val": number // 10, "test": number * 3 // 10}[split]
        place, part = list(SCANNERS).index(domain), SPLITS.index(split)
        kinds, pictures, masks = [], [], []
        for index in range(share):
            rng = np.random.default_rng([self.seed, place, part, index])
            kinds.append(int(rng.integers(len(KINDS))))
            picture, mask = draw(list(KINDS)[kinds[-1]], SCANNERS[domain], self.size, rng)
            pictures.append(picture)
            masks.append(mask)
        x = torch.from_numpy((255 * np.stack(pictures)).round().astype(np.uint8))[:, None]
        if not self.masks:
            return TensorDomain(x, torch.tensor(kinds), list(KINDS))
        return TensorDomain(x, torch.zeros(share), PARTS, masks=torch.from_numpy(np.stack(masks)))


def draw(
    kind: str, scanner: Scanner, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """A picture (size, size) in [0, 1], and its mask (size, size), whose values are places in `PARTS`.

    Args:
        kind: One of `KINDS`.
        scanner: What draws it.
        size: Height and width in pixels.
        rng: Draws the heart, then the noise.
    """
    y, x = (np.indices((size, size)) + 0.5) / size * 2 - 1  # -1 to 1

    def radius(centre: NDArray[Any], axes: NDArray[Any], angle: float) -> NDArray[np.float64]:
        """1 on an ellipse, less inside."""
        u, v = x - centre[0], y - centre[1]
        along = np.cos(angle) * u + np.sin(angle) * v
        across = np.cos(angle) * v - np.sin(angle) * u
        found: NDArray[np.float64] = np.hypot(along / axes[0], across / axes[1])
        return found

    centre = rng.uniform(-0.12, 0.12, 2)
    outer = rng.uniform(0.52, 0.66) * np.array([1.0, rng.uniform(0.8, 1.0)])
    angle = rng.uniform(0, np.pi)
    inner = rng.uniform(*KINDS[kind]) * outer * rng.uniform(0.97, 1.03, 2)
    epicardium = radius(centre, outer, angle) <= 1
    moved = centre + 0.2 * (outer - inner).min() * rng.uniform(-1, 1, 2)
    endocardium = radius(moved, inner, angle) <= 1
    side = np.pi + rng.uniform(-0.4, 0.4)
    beside = centre + (outer.max() + 0.1) * np.array([np.cos(side), np.sin(side)])
    right = radius(beside, rng.uniform(0.18, 0.32, 2), rng.uniform(0, np.pi)) <= 1
    chest = radius(np.zeros(2), np.array([0.95, 0.8]), 0.0) <= 1

    clean = np.where(chest, scanner.chest, scanner.lung)
    clean = clean + 0.5 * scanner.chest * gaussian_filter(rng.normal(size=clean.shape), size / 16)
    for inside, brightness in ((right, scanner.blood), (epicardium, scanner.wall), (endocardium, scanner.blood)):
        clean = np.where(inside, brightness, clean)
    blurred = gaussian_filter(clean, size / 80)
    slope = rng.normal(size=5) @ np.stack([x, y, x * y, x**2 - 1 / 3, y**2 - 1 / 3]).reshape(5, -1) / np.sqrt(5)
    signal = blurred * np.exp(scanner.bias * slope.reshape(size, size))
    noise = scanner.noise * rng.normal(size=(2, size, size))
    picture = np.clip(np.hypot(signal + noise[0], noise[1]), 0, 1)
    mask = np.where(endocardium, PARTS.index("cavity"), np.where(epicardium, PARTS.index("wall"), 0))
    return picture, mask.astype(np.uint8)
