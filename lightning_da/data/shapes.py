"""Made pictures of shapes whose classes differ by attributes, for zero-shot learning."""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_da.data.base import SPLITS, DataError, DomainPairDataModule, TensorDomain
from lightning_da.data.descriptions import Descriptions
from lightning_da.errors import check_range, list_choices
from lightning_da.names import Names

SIDE = 20
FORMS = ("disc", "square", "cross")
COLOURS = {"red": (1.0, 0.3, 0.3), "green": (0.3, 1.0, 0.3), "blue": (0.3, 0.3, 1.0)}
FILLS = ("full", "hollow")
CLASSES = [" ".join(parts) for parts in itertools.product(FILLS, COLOURS, FORMS)]
UNSEEN = ("full red cross", "full blue square", "hollow green square", "hollow blue disc", "hollow red disc")
"""Classes of the domain `unseen`; each of their attributes is one of a seen class, too."""


class Shapes(DomainPairDataModule):
    """Pictures of 20 x 20 pixels of a disc, square or cross, red, green or blue, full or hollow: 18 classes.

    The domain `seen` has 13 classes and `unseen` the other 5. The attributes are the eight words of the names. Place,
    size, brightness and noise are drawn.

    Args:
        source: Domain with labels, `seen`.
        target: Domain to transfer to, `unseen`.
        batch_size: Samples per batch and domain, on each process.
        number: Pictures of each class, over all splits.
        noise: Standard deviation of the noise; pixels are in [0, 1].
        seed: Seed of the pictures.
        **kwargs: Arguments of `DomainPairDataModule`; a file of `descriptions` replaces the attributes.
    """

    def __init__(
        self,
        source: Names = "seen",
        target: Names = "unseen",
        batch_size: int = 64,
        number: int = 100,
        noise: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        check_range("data.number", number, 10)
        check_range("data.noise", noise, 0)
        check_range("data.seed", seed, 0)
        self.number, self.noise, self.seed = number, noise, seed

    @property
    def described(self) -> Descriptions:
        """The words of the names as attributes."""
        if (given := super().described) is not None:
            return given
        words = [*FORMS, *COLOURS, *FILLS]
        values = np.array([[word in name.split() for word in words] for name in CLASSES], dtype=np.float32)
        return Descriptions("shapes", CLASSES, words, values)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        classes = {"seen": [name for name in CLASSES if name not in UNSEEN], "unseen": list(UNSEEN)}
        if domain not in classes:
            raise DataError(f"no domain {domain!r} of shapes; {list_choices(domain, classes)}")
        number = {"train": self.number * 7 // 10, "val": self.number // 10, "test": self.number // 5}[split]
        rng = np.random.default_rng([self.seed, SPLITS.index(split), domain == "seen"])
        labels = np.repeat(np.arange(len(classes[domain])), number)
        pictures = np.stack([draw(classes[domain][label], rng, self.noise) for label in labels])
        pixels = torch.from_numpy((255 * pictures).round().astype(np.uint8)).movedim(-1, 1)
        return TensorDomain(pixels, torch.from_numpy(labels), classes[domain])


def draw(name: str, rng: np.random.Generator, noise: float) -> NDArray[np.float64]:
    """A picture of a class, shape (20, 20, 3), in [0, 1]."""
    fill, colour, form = name.split()
    radius = rng.uniform(5, 7)
    row, column = np.indices((SIDE, SIDE)) - rng.uniform(radius, SIDE - 1 - radius, (2, 1, 1))

    def inside(radius: float) -> Any:
        flat, thin = (extreme(abs(row), abs(column)) for extreme in (np.maximum, np.minimum))
        if form == "disc":
            return np.hypot(row, column) <= radius
        return (flat <= radius) & ((form == "square") | (thin <= radius - 3.5))

    mask = inside(radius) & ~(inside(radius - 1.6) & (fill == "hollow"))
    paint = rng.uniform(0.6, 1.0) * np.array(COLOURS[colour])
    picture = np.where(mask[..., None], paint, rng.uniform(0.0, 0.3))
    return np.clip(picture + rng.normal(0, noise, picture.shape), 0, 1)
