from typing import Any

from torch import Tensor

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import ConfigError
from lightning_da.losses.adversarial import scale_gradient, unknown_boundary
from lightning_da.losses.games import with_fixed_weights
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch


class OSBP(AdaptationModule):
    """Open-set adaptation by backpropagation: the last class is `unknown`, and no sample of the source has it.

    The head gives each target sample this class with a fixed probability. The backbone moves the sample away from this
    boundary: to the known classes, or to `unknown`. The data need `class_sets: open`.

    Source: Saito et al., "Open set domain adaptation by backpropagation", ECCV 2018, equations 2 to 5. The domain loss
    is equation 3 twice, for the head and, with a reversed gradient, for the layers below it.
    https://arxiv.org/abs/1804.10427

    Args:
        threshold: The probability of `unknown` that the head aims at, in (0, 1).
        **kwargs: Arguments of `AdaptationModule`; `layers` is `bottleneck`.

    Raises:
        ConfigError: If another layer is adapted, or `threshold` is out of range; when a fit begins, if no output is
            left for `unknown`.
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold: {threshold} is not in (0, 1)")
        if self.adapted != ("bottleneck",):
            raise ConfigError(f"layers: the head reads the bottleneck; set [bottleneck], not {list(self.adapted)}")
        self.threshold = threshold

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        super().fit_inputs(data)
        if self.num_classes <= len(data.classes_in("source")):
            raise ConfigError("OSBP answers `unknown` beside the classes of the source; set --data.class_sets open")

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:  # noqa: ARG002
        (features,) = target.layers
        of_layers = with_fixed_weights(self.head, scale_gradient(features, -1))
        of_head = scale_gradient(self.head(features.detach()), self.domain_weight)
        return unknown_boundary(of_layers, self.threshold) + unknown_boundary(of_head, self.threshold)
