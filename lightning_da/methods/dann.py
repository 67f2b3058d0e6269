from typing import Any

import torch
from torch import Tensor

from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import discriminators, watch_discriminators


class DANN(AdaptationModule):
    """Domain-adversarial training: a discriminator separates the domains, and the network makes them inseparable.

    Source: Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016, equation 9. The weight of the
    domain loss is the paper's lambda: it scales the reversed gradient of the features only.
    https://arxiv.org/abs/1505.07818

    Args:
        discriminator: Widths of the hidden layers in the domain discriminators; each adapted layer has its own.
        discriminator_batch_norm: Whether the hidden layers of the discriminators have batch normalisation.
        **kwargs: Arguments of `AdaptationModule`.
    """

    can_regress = True

    def __init__(
        self, discriminator: tuple[int, ...] = (100,), discriminator_batch_norm: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.discriminators = discriminators(self.adapted_widths(), discriminator, discriminator_batch_norm)

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        losses = [
            domain_classification(scale_gradient(s, -1), scale_gradient(t, -1), discriminator)
            for s, t, discriminator in zip(source.layers, target.layers, self.discriminators, strict=True)
        ]
        return torch.stack(losses).sum()

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        return super().watched(source, target) | watch_discriminators(source.layers, target.layers, self.discriminators)
