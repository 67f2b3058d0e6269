from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from lightning_da.losses.precision import full_precision


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The identity, whose gradient is multiplied by `factor` on the way back.

    With -1 it is the gradient reversal layer of Ganin et al., JMLR 2016, section 4.2.

    Args:
        x: Any shape, floating point.
        factor: Any finite number.

    Returns:
        `x`, same shape and dtype.
    """
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


@full_precision
def domain_classification(source: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
    """Cross-entropy of a domain discriminator, the mean over source samples plus the mean over target samples.

    Source: Ganin et al., JMLR 2016, equations 6 and 9: -log d(f) on source and -log(1 - d(f)) on target.

    Args:
        source: Features, shape (n_s, d), floating point.
        target: Features, shape (n_t, d), floating point.
        discriminator: From (n, d) to (n, 1) logits, positive for source.

    Returns:
        A scalar, float32 or better: 2 log 2 = 1.386 where the discriminator cannot tell.
    """
    return softplus(-discriminator(source)).mean() + softplus(discriminator(target)).mean()


@full_precision
def inverted_labels(target: Tensor, discriminator: nn.Module) -> Tensor:
    """Cross-entropy of target features that are called source; the discriminator's parameters get no gradient.

    Source: Tzeng et al., "Adversarial discriminative domain adaptation", CVPR 2017, equation 9.

    Args:
        target: Features, shape (n_t, d), floating point.
        discriminator: From (n, d) to (n, 1) logits, positive for source.

    Returns:
        A scalar, float32 or better.
    """
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return softplus(-functional_call(discriminator, fixed, (target,))).mean()
