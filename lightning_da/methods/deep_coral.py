import torch
from torch import Tensor

from lightning_da.losses.coral import coral
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch


class DeepCORAL(AdaptationModule):
    """Aligns the covariances of source and target activations; the losses of several layers are summed.

    Source: Sun and Saenko, "Deep CORAL", ECCV workshops 2016, equation 6. The paper adapts the `head` only.
    https://arxiv.org/abs/1607.01719
    """

    can_regress = True

    fewest_for_domain_loss = 2

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return torch.stack([coral(s, t) for s, t in zip(source.layers, target.layers, strict=True)]).sum()
