from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import mse_loss

from lightning_da.errors import ConfigError
from lightning_da.gather import mean_over_processes
from lightning_da.methods.decoders import decoder as new_decoder
from lightning_da.methods.semi_supervised import SemiSupervised
from lightning_da.schedules import constant


class Autoencoder(SemiSupervised):
    """An autoencoder of all samples, with the classifier of the labelled ones beside it.

    A decoder computes the sample, as the backbone reads it, from the input of the head; its mean squared error is added
    to the task loss.

    Source: Ranzato and Szummer, "Semi-supervised learning of compact document representations with deep networks", ICML
    2008, equation 1, with a network of several layers.

    Args:
        decoder: Width of each hidden layer of the decoder.
        unlabelled_schedule: As for `SemiSupervised`.
        **kwargs: Arguments of `SemiSupervised`.

    Raises:
        ConfigError: If the samples are sentences.
    """

    def __init__(
        self,
        decoder: tuple[int, ...] = (256,),
        unlabelled_schedule: Callable[[float], float] = constant,
        **kwargs: Any,
    ) -> None:
        super().__init__(unlabelled_schedule=unlabelled_schedule, **kwargs)
        if self.reads_words:
            raise ConfigError(
                "an autoencoder computes numbers, not words; pseudo-labels read words, too: --config "
                "method/pseudo_labels.yaml"
            )
        self.decoder = new_decoder(self.head.in_features, decoder, self.input_shape)

    def unlabelled_loss(self, x: Tensor) -> Tensor:
        """Mean squared error of the reconstruction; for the shapes see `SemiSupervised.unlabelled_loss`."""
        loss = mse_loss(self.decoder(self.features(x)), self.standardize(x).flatten(1), reduction="none").mean(dim=1)
        return mean_over_processes(loss.sum(), len(loss))
