from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import check_range
from lightning_da.gather import gather, mean_over_processes
from lightning_da.losses.adversarial import domain_classification, domain_confusion
from lightning_da.losses.confusion import class_means
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import discriminators, watch_discriminators


class DomainConfusion(AdaptationModule):
    """Domain confusion with soft labels: the discriminator is to be undecided, where DANN reverses its gradient.

    In each step the discriminator learns to tell the domains apart from features that stay as they are, and the network
    learns features of which the discriminator, as it was before the step, says "half and half".

    With `train_on: both`, labelled samples of the target also learn the soft label of their class: the mean prediction
    for source samples of the class at a high temperature, over the steps so far with older ones fading. It says which
    classes are alike in the source. Without labels of the target there is no such term.

    Source: Tzeng et al., "Simultaneous deep transfer across domains and tasks", ICCV 2015, equations 3 to 9.
    https://arxiv.org/abs/1510.02192

    Args:
        discriminator: Widths of the hidden layers in the domain discriminators; each adapted layer has its own.
        soft_weight: Weight of the soft-label loss (nu).
        temperature: Divides the logits in soft labels (tau).
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `soft_weight` is negative, or `temperature` not above 0.
    """

    soft_labels: Tensor
    """The soft label of each class, shape (num_classes, num_classes); 0 for a class that was not yet seen."""

    def __init__(
        self,
        discriminator: tuple[int, ...] = (100,),
        soft_weight: float = 0.1,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("soft_weight", soft_weight, 0)
        check_range("temperature", temperature, above=0)
        self.discriminators = discriminators(self.adapted_widths(), discriminator)
        self._soft_weight, self._temperature = soft_weight, temperature
        self.register_buffer("soft_labels", torch.zeros(self.num_classes, self.num_classes))

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        pairs = list(zip(source.layers, target.layers, self.discriminators, strict=True))
        discriminator_loss = torch.stack([domain_classification(s.detach(), t.detach(), d) for s, t, d in pairs]).sum()
        confusion = torch.stack([domain_confusion(s, t, d) for s, t, d in pairs]).sum()
        self.log_dict({"train/discriminator_loss": discriminator_loss, "train/confusion_loss": confusion})
        return discriminator_loss + confusion

    def mean_task_loss(self, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        given = list(parts)
        loss = super().mean_task_loss(given)
        if len(given) < 2 or self._soft_weight == 0:
            return loss
        self.learn_soft_labels(*given[0])
        soft_loss = self.soft_label_loss(*given[1])
        self.log("train/soft_label_loss", soft_loss)
        return loss + self._soft_weight * soft_loss

    @torch.no_grad()
    def learn_soft_labels(self, logits: Tensor, y: Tensor) -> None:
        """Takes in the predictions for source samples: logits (n, num_classes), labels (n,)."""
        p, y = gather((logits / self._temperature).softmax(dim=1)), gather(y)
        found = class_means(p, y, self.num_classes).to(self.soft_labels)
        fresh = torch.where(self.soft_labels.sum(dim=1, keepdim=True) > 0, self.soft_labels.lerp(found, 0.1), found)
        self.soft_labels.copy_(torch.where(found.sum(dim=1, keepdim=True) > 0, fresh, self.soft_labels))

    def soft_label_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy with the soft labels of the classes, the mean over the labelled samples of all processes.

        Args:
            logits: Of target samples, shape (n, num_classes).
            y: Their labels, shape (n,), int64, `UNKNOWN` where the class is not known.
        """
        known = y != UNKNOWN
        log_p = (logits[known] / self._temperature).log_softmax(dim=1)
        return mean_over_processes(-(self.soft_labels[y[known]] * log_p).sum(), known.sum())

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        return super().watched(source, target) | watch_discriminators(source.layers, target.layers, self.discriminators)
