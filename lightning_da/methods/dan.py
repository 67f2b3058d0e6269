from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.errors import ConfigError
from lightning_da.losses.mmd import PAPER_BANDWIDTHS, GaussianKernel, linear_kernel
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.mmd import MMDModule


class DAN(MMDModule):
    """Multi-kernel MMD between the source and target activations of several layers, including the logits.

    Source: Long et al., "Learning transferable features with deep adaptation networks", ICML 2015, equations 4 to 8.
    With `layers` [bottleneck] and the `linear` kernel it is DDC (Tzeng et al., "Deep domain confusion", 2014).
    https://arxiv.org/abs/1502.02791, https://arxiv.org/abs/1412.3474

    Args:
        bandwidths: Bandwidths of the Gaussian kernels as multiples of the median squared distance. `paper` uses 33
            bandwidths from 2^-8 to 2^8; `linear` uses the kernel x . y instead.
        beta: Kernel weights, one per bandwidth: `uniform`, `learned` (the paper's quadratic program, alternating with
            the network), or given numbers.
        **kwargs: Arguments of `MMDModule`.

    Raises:
        ConfigError: If the weights do not match the bandwidths.
    """

    can_regress = True

    def __init__(
        self,
        bandwidths: Literal["paper", "linear"] | tuple[float, ...] = "paper",
        beta: Literal["uniform", "learned"] | tuple[float, ...] = "learned",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._learned = beta == "learned"
        given = None if isinstance(beta, str) else beta
        self.kernels = nn.ModuleList()
        if bandwidths != "linear":
            chosen = PAPER_BANDWIDTHS if bandwidths == "paper" else bandwidths
            try:
                self.kernels.extend(GaussianKernel(chosen, given) for _ in self.adapted)
            except ValueError as error:
                raise ConfigError(str(error)) from error
        elif beta != "uniform":
            raise ConfigError("beta: the linear kernel is one kernel without weights; set --model.beta uniform")

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        distances = []
        for place, (layer, s, t) in enumerate(zip(self.adapted, source.layers, target.layers, strict=True)):
            kernel = self.kernels[place] if self.kernels else linear_kernel
            distances.append(self.distance(layer, [s], [t], [kernel]))
            if isinstance(kernel, GaussianKernel) and self._learned:
                kernel.learn(s, t)
                self.log_dict({f"mmd/{layer}_{key}": value for key, value in kernel.summary().items()})
        return torch.stack(distances).sum()
