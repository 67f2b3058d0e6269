"""The bases of the methods that make pictures."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import check_range
from lightning_da.methods.base import TransferModule
from lightning_da.networks.pictures import Between
from lightning_da.networks.pictures import generator as new_generator


class DrawsPictures(TransferModule):
    """A method that makes samples, which are drawn where they are pictures."""

    def read(self, x: Tensor, domain: str) -> Tensor:
        """Samples (n, *input_shape) of a domain as the backbone reads them."""
        self.set_domain(domain)
        found: Tensor = self.standardize(x)
        self.set_domain("target")
        return found

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        """Samples as the backbone reads them, and what the method makes of them or beside them.

        Args:
            x: Samples, shape (n, *input_shape).
            domain: `source` or `target`.

        Returns:
            From a name to samples (n, *input_shape), those that were read first.
        """
        raise NotImplementedError


class GeneratesPictures(DrawsPictures):
    """A method with a generator, which makes pictures from noise with the values of the training samples.

    Args:
        noise: Number of random values that a picture is made from.
        generator: Number of feature maps before the last layer of the generator.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If samples are no pictures, or a number is out of range.
    """

    def __init__(self, noise: int = 64, generator: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in {"noise": noise, "generator": generator}.items():
            check_range(name, value, 1)
        self._noise = noise
        self.generator = new_generator(noise, self.input_shape, generator)

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        """Takes the smallest and the largest value of a sample that training reads too."""
        super().fit_inputs(data)

        def samples() -> Iterator[Tensor]:
            for role in sorted({*self.supervised, *self.unlabelled}):
                self.set_domain(role)
                yield from map(self.standardize, self.training_samples(data, role))

        cast(Between, self.generator.get_submodule("between")).fit(samples())
        self.set_domain("target")

    def made(self, noise: Tensor) -> Tensor:
        """Pictures (n, *input_shape) of the domain that is set, as the backbone reads them, from noise (n, `noise`)."""
        pictures: Tensor = self.generator(noise.to(self.head.weight))
        return pictures

    def fixed_noise(self, number: int) -> Tensor:
        """The same noise (number, `noise`) each time, for what is looked at."""
        return torch.randn(number, self._noise, generator=torch.Generator().manual_seed(0))
