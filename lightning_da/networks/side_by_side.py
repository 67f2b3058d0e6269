from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lightning_da.networks.backbones import Backbone, BackboneCallable


class SideBySide(Backbone):
    """Several networks of one kind with weights of their own, whose features are joined.

    It has no layers in an order of depth.

    Args:
        input_shape: Shape of one sample.
        backbone: From the shape of one sample to one of the networks.
        number: How many there are.
    """

    def __init__(self, input_shape: tuple[int, ...], backbone: BackboneCallable, number: int) -> None:
        super().__init__()
        networks = [backbone(input_shape) for _ in range(number)]
        self.networks = nn.ModuleList(networks)
        self.layers, self.num_features = [], sum(network.num_features for network in networks)
        self.pretrained, self.reads_words = networks[0].pretrained, networks[0].reads_words
        self.reads_units = networks[0].reads_units

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> None:
        for network in self.networks:
            network.fit(samples)  # type: ignore[operator]

    def load_pretrained(self) -> None:
        for network in self.networks:
            network.load_pretrained()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, num_features) of samples (B, *input_shape)."""
        return torch.cat([network(x) for network in self.networks], dim=1)
