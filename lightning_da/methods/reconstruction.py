"""The base of the methods whose domain loss reconstructs samples."""

from typing import Any

from torch import Tensor

from lightning_da.errors import ConfigError
from lightning_da.methods.adaptation import AdaptationModule
from lightning_da.methods.decoders import decoder as new_decoder
from lightning_da.methods.pictures import DrawsPictures


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
