from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import check_range
from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import watch_discriminators
from lightning_da.methods.segmentation import Segmentation
from lightning_da.networks.pictures import patch_discriminator


class AdversarialSegmentation(Segmentation, AdaptationModule):
    """Segmentation from few masks: a discriminator tells true masks from predicted ones, and the network deceives it.

    True masks are those of the source, predicted masks those of all images of both domains, labelled or not. The
    objective is `min_F max_D V(F, D) + cross-entropy + mae_weight L_mae`, `V = log D(y) + log (1 - D(F(x)))`, the
    discriminator D with one answer for each part of a mask; gradient reversal, with the weight of the domain loss, puts
    both players into one step.

    Source: the adversarial term of Goodfellow et al., "Generative adversarial networks", NeurIPS 2014, equation 1, on
    masks as in Luc et al., "Semantic segmentation using adversarial networks", 2016, equation 1.
    https://arxiv.org/abs/1406.2661, https://arxiv.org/abs/1611.08408

    Args:
        train_on: The domains whose masks are read, the source among them.
        discriminator: Number of feature maps after the first layer of the discriminator.
        **kwargs: Arguments of `Segmentation` and `AdaptationModule`.

    Raises:
        ConfigError: If a side of the images has fewer than 4 pixels, or `discriminator` is less than 1.
    """

    def __init__(self, train_on: Literal["source", "both"] = "both", discriminator: int = 8, **kwargs: Any) -> None:
        super().__init__(train_on=train_on, layers=("bottleneck",), **kwargs)
        check_range("discriminator", discriminator, 1)
        with torch.random.fork_rng(devices=[]):  # dropout draws as it does without it
            self.discriminator = patch_discriminator((self.num_classes, *self.input_shape[1:]), discriminator)

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        true, predicted = self._masks(source, target)
        return domain_classification(true, scale_gradient(predicted, -1), self.discriminator)

    def _masks(self, source: DomainBatch, target: DomainBatch) -> tuple[Tensor, Tensor]:
        """True masks (n_s, classes, height, width) of the source, and predicted ones of both domains.

        Where the class of a pixel is not known, the true mask has the prediction.
        """
        predicted = torch.cat([source.logits, target.logits]).softmax(dim=1)
        known = source.labels != UNKNOWN
        drawn = one_hot(source.labels.clamp(min=0), self.num_classes).movedim(-1, 1).to(predicted)
        true = torch.where(known[:, None], drawn, predicted[: len(drawn)].detach())
        return true, predicted

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        true, predicted = self._masks(source, target)
        return super().watched(source, target) | watch_discriminators([true], [predicted], [self.discriminator])
