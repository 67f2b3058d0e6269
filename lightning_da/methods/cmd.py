from typing import Any

import torch
from torch import Tensor

from lightning_da.errors import check_range
from lightning_da.losses.moments import central_moments
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch


class CMD(AdaptationModule):
    """Makes the mean and the central moments of each feature equal in both domains; several layers are summed.

    The discrepancy is that of features in an interval. Activations of the adapted layers are brought into (-1, 1) by
    tanh; no other part of the network reads them so.

    Source: Zellinger et al., "Central moment discrepancy (CMD) for domain-invariant representation learning", ICLR
    2017, definition 2 and equation 6.
    https://arxiv.org/abs/1702.08811

    Args:
        order: The highest moment.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `order` is less than 1.
    """

    fewest_for_domain_loss = 2
    can_regress = True

    def __init__(self, order: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("order", order, 1)
        self._order = order

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        pairs = zip(source.layers, target.layers, strict=True)
        return torch.stack([central_moments(s.tanh(), t.tanh(), self._order, width=2) for s, t in pairs]).sum()
