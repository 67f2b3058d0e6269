from typing import Any

import torch
from torch import Tensor

from lightning_da.errors import ConfigError, check_range
from lightning_da.gather import gather
from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.losses.centroids import similarity_entropy
from lightning_da.losses.confusion import class_means
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import MultiLayerDiscriminator, watch_discriminators


class LabelEfficient(AdaptationModule):
    """Label-efficient transfer: one discriminator of several layers, and samples that decide for a class.

    The discriminator reads all adapted `layers`, one after the other, with a reversed gradient. Each unlabelled sample
    of the target is to be near to one class: to the mean of the source samples of a class and, with `train_on: both`,
    to that of the labelled target samples of a class. Near is the angle between inputs of the head, the means are those
    of the batch. The few labels are in the task loss, too.

    Source: Luo et al., "Label efficient learning of transferable representations across domains and tasks", NIPS 2017,
    section 3. The paper has a network for each domain and inverted labels, and classes of the target that the source
    lacks; here both domains share the network and the classes.
    https://arxiv.org/abs/1712.00123

    Args:
        layers: Names of the adapted layers, in order of depth; `bottleneck` is among them.
        hidden: Width of the discriminator's hidden layer for each adapted layer.
        semantic_weight: Weight of the entropies, beside the discriminator's loss.
        temperature: Divides the cosines in the entropies.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `bottleneck` is not adapted, or a number is out of range.
    """

    def __init__(
        self,
        layers: tuple[str, ...] = ("bottleneck", "head"),
        hidden: int = 100,
        semantic_weight: float = 0.1,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(layers=layers, **kwargs)
        check_range("hidden", hidden, 1)
        check_range("semantic_weight", semantic_weight, 0)
        check_range("temperature", temperature, above=0)
        if "bottleneck" not in self.adapted:
            raise ConfigError(f"layers: classes are near in the bottleneck; add it to {list(self.adapted)}")
        self.discriminator = MultiLayerDiscriminator(self.adapted_widths(), hidden)
        self._semantic = (semantic_weight, temperature)
        self._labelled: DomainBatch | None = None

    def domain_batches(
        self, batch: dict[str, Any], joint: bool = False
    ) -> tuple[DomainBatch, DomainBatch, DomainBatch | None]:
        source, target, self._labelled = super().domain_batches(batch, joint)
        return source, target, self._labelled

    def embedded(self, batch: DomainBatch) -> Tensor:
        """The input of the head of a batch, (n, width)."""
        return batch.layers[self.adapted.index("bottleneck")]

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        s, t = (scale_gradient(torch.cat(batch.layers, dim=1), -1) for batch in (source, target))
        adversarial = domain_classification(s, t, self.discriminator)
        weight, temperature = self._semantic
        to_source, to_target = (
            similarity_entropy(self.embedded(target), class_means(x, y, self.num_classes), temperature)
            for x, y in ((self.embedded(source), source.labels), self.few(target))
        )
        self.log_dict(
            {"train/adversarial_loss": adversarial, "train/entropy": to_source, "train/few_entropy": to_target}
        )
        return adversarial + weight * (to_source + to_target)

    def few(self, target: DomainBatch) -> tuple[Tensor, Tensor]:
        """Inputs of the head (n, width) and labels (n,) of the labelled target samples of all processes."""
        if self._labelled is None:
            return self.embedded(target), target.labels
        return gather(scale_gradient(self.embedded(self._labelled), self.domain_weight)), gather(self._labelled.labels)

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        s, t = (torch.cat(batch.layers, dim=1) for batch in (source, target))
        return super().watched(source, target) | watch_discriminators([s], [t], [self.discriminator])
