from typing import Any

from torch import Tensor

from lightning_da.errors import check_range
from lightning_da.losses.confusion import class_confusion
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch


class MCC(AdaptationModule):
    """Minimum class confusion: the classes that the target's predictions confuse are told apart.

    The loss reads the logits of the target only; the adapted `layers` are not used.

    Source: Jin et al., "Minimum class confusion for versatile domain adaptation", ECCV 2020, equations 2 to 6.
    https://arxiv.org/abs/1912.03699

    Args:
        temperature: Divides the logits: with 1 a few certain predictions hide the confusion of the others.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `temperature` is not above 0.
    """

    def __init__(self, temperature: float = 2.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("temperature", temperature, above=0)
        self._temperature = temperature

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:  # noqa: ARG002
        return class_confusion(target.logits, self._temperature)
