from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_da.losses.mmd import Estimator, Kernel, joint_mmd, null_distribution
from lightning_da.methods.adaptation import AdaptationModule


class MMDModule(AdaptationModule):
    """Base class of methods with a maximum mean discrepancy: the estimator, and logging with a null distribution.

    Args:
        layers: Names of the adapted layers.
        estimator: `unbiased`, `biased` or `linear` (see `lightning_da.losses.mmd.mmd`).
        **kwargs: Arguments of `AdaptationModule`.
    """

    fewest_for_domain_loss = 2

    def __init__(
        self, layers: tuple[str, ...] = ("bottleneck", "head"), estimator: Estimator = "unbiased", **kwargs: Any
    ) -> None:
        super().__init__(layers=layers, **kwargs)
        self._estimator: Estimator = estimator

    def distance(self, name: str, source: list[Tensor], target: list[Tensor], kernels: Sequence[Kernel]) -> Tensor:
        """The squared MMD, logged as `mmd/<name>`, with mean and deviation over shuffled domain labels."""
        distance = joint_mmd(source, target, kernels, self._estimator, shared=True)
        self.log(f"mmd/{name}", distance)
        if self.logs_now:
            null = null_distribution(source, target, kernels, self._estimator, shared=True)
            self.log_dict({f"mmd/{name}_null": null.mean(), f"mmd/{name}_null_std": null.std()})
        return distance
