from typing import Any

from torch import Tensor, nn

from lightning_da.losses.mmd import GaussianKernel
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.mmd import MMDModule


class JAN(MMDModule):
    """Joint MMD: one discrepancy between the joint distributions of several layers, including class probabilities.

    Source: Long et al., "Deep transfer learning with joint adaptation networks", ICML 2017, equations 8 and 9. As in
    the authors' code, features have five kernels, and the probabilities of the `head` one kernel with the fixed
    bandwidth 1.68. The bandwidths for features are multiples of the median squared distance, in the authors' code of
    the mean.
    https://arxiv.org/abs/1605.06636

    Args:
        **kwargs: Arguments of `MMDModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernels = nn.ModuleList(
            GaussianKernel((1.68,), of_median=False) if layer == "head" else GaussianKernel((0.25, 0.5, 1, 2, 4))
            for layer in self.adapted
        )

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        def joint(activations: list[Tensor]) -> list[Tensor]:
            return [
                activation.softmax(dim=1) if layer == "head" else activation
                for layer, activation in zip(self.adapted, activations, strict=True)
            ]

        return self.distance("joint", joint(source.layers), joint(target.layers), list(self.kernels))
