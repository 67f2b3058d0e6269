from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.backbones import FeedForward
from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.methods.base import AdaptationModule


class DANN(AdaptationModule):
    """Domain-adversarial training: a discriminator learns to tell the domains apart, the network to prevent it.

    Source: Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016, equation 9. The weight of the
    domain loss is the paper's lambda: it scales the reversed gradient on the feature path only.

    Args:
        discriminator: Widths of the hidden layers of the domain discriminator, of which each adapted layer has one.
        **kwargs: Arguments of `AdaptationModule`.
    """

    def __init__(self, discriminator: tuple[int, ...] = (100,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.discriminators = nn.ModuleList(
            nn.Sequential(FeedForward((width,), list(discriminator)), nn.Linear(discriminator[-1], 1))
            for width in self.adapted_widths()
        )

    def domain_loss(self, source: list[Tensor], target: list[Tensor]) -> Tensor:
        losses = [
            domain_classification(scale_gradient(s, -1), scale_gradient(t, -1), discriminator)
            for s, t, discriminator in zip(source, target, self.discriminators, strict=True)
        ]
        return torch.stack(losses).sum()
