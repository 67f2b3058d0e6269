from typing import Any

import torch
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import check_range
from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import discriminators, watch_discriminators


class PADA(AdaptationModule):
    """Partial adaptation: DANN, in which classes that the target seems to lack count little.

    The weight of a class is its mean predicted probability over target samples, divided by that of the largest class.
    It multiplies the task loss of the source samples of this class. The domain loss of the source is the mean with
    these weights, so that the discriminators see as much of both domains.

    Source: Cao et al., "Partial adversarial domain adaptation", ECCV 2018, equations 3 to 5. The mean here is a moving
    one over batches; in the paper it is that of the whole target, every 500 steps, and the
    domain loss is divided by the number of samples, not by their weights.
    https://arxiv.org/abs/1808.04205

    Args:
        discriminator: Widths of the hidden layers in the domain discriminators; each adapted layer has its own.
        discriminator_batch_norm: Whether the hidden layers of the discriminators have batch normalisation.
        memory: The share of the mean that is left after a step; the rest is from the batch. In [0, 1].
        warm_up: The fraction of training in which all classes weigh 1: the predictions of a network that has learned
            nothing would choose the classes that it learns. In [0, 1].
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `memory` or `warm_up` is out of range.
    """

    def __init__(
        self,
        discriminator: tuple[int, ...] = (100,),
        discriminator_batch_norm: bool = False,
        memory: float = 0.99,
        warm_up: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("memory", memory, 0, 1)
        check_range("warm_up", warm_up, 0, 1)
        self.memory, self.warm_up = memory, warm_up
        self.discriminators = discriminators(self.adapted_widths(), discriminator, discriminator_batch_norm)
        self.target_shares: Tensor
        self.register_buffer("target_shares", torch.full((self.num_classes,), 1 / self.num_classes))

    @property
    def class_weights(self) -> Tensor:  # type: ignore[override]
        """Weight of each class at this step, shape (num_classes,), in [0, 1]."""
        if self.progress < self.warm_up:
            return torch.ones_like(self.target_shares)
        return self.target_shares / self.target_shares.max()

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        weights = torch.where(source.labels == UNKNOWN, 1.0, self.class_weights[source.labels])
        losses = [
            domain_classification(scale_gradient(s, -1), scale_gradient(t, -1), discriminator, weights)
            for s, t, discriminator in zip(source.layers, target.layers, self.discriminators, strict=True)
        ]
        with torch.no_grad():
            found = target.logits.to(self.target_shares.dtype).softmax(dim=1).mean(dim=0)
            self.target_shares.lerp_(found, 1 - self.memory)
        return torch.stack(losses).sum()

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        return super().watched(source, target) | watch_discriminators(source.layers, target.layers, self.discriminators)
