"""The base of the methods that make pictures, and of those whose domain loss reconstructs samples."""

from typing import Any

from torch import Tensor

from lightning_da.errors import ConfigError
from lightning_da.methods.adaptation import AdaptationModule
from lightning_da.methods.base import TransferModule
from lightning_da.methods.decoders import decoder as new_decoder


class DrawsPictures(TransferModule):
    """A method that makes samples, which are drawn where they are pictures."""

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        """Samples as the backbone reads them, and what the method makes of them or beside them.

        Args:
            x: Samples, shape (n, *input_shape).
            domain: `source` or `target`.

        Returns:
            From a name to samples (n, *input_shape), those that were read first.
        """
        raise NotImplementedError


class ReconstructionModule(DrawsPictures, AdaptationModule):
    """A decoder beside the classifier; the domain loss sees the samples as the last of its layers.

    A `DomainBatch` has the input of the head, then what a subclass adds, then the samples as the backbone reads them,
    flattened.

    Args:
        decoder: Width of each hidden layer of the decoder.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If the samples are sentences.
    """

    def __init__(self, decoder: tuple[int, ...] = (256,), **kwargs: Any) -> None:
        super().__init__(layers=("bottleneck",), **kwargs)
        if self.reads_words:
            raise ConfigError("a decoder computes numbers, not words; use --config method/dann.yaml")
        self.decoder = new_decoder(self.head.in_features, decoder, self.input_shape)

    def further_layers(self, x: Tensor, domain: str) -> list[Tensor]:  # noqa: ARG002
        return [self.standardize(x).flatten(1)]
