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
    """Returns `x`; the backward pass multiplies the gradient by `factor`.

    A factor of -1 makes the gradient reversal layer.

    Source: Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016, section 4.2.
    https://arxiv.org/abs/1505.07818

    Args:
        x: Any shape, floating point.
        factor: Any finite number.

    Returns:
        `x`, same shape and dtype.

    Examples:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> scale_gradient(x, -1.0).sum().backward()
        >>> x.grad
        tensor([-1., -1.])
    """
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


@full_precision
def domain_classification(source: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
    """Cross-entropy of a domain discriminator, the mean over source samples plus the mean over target samples.

    It is -log d(f) on source and -log(1 - d(f)) on target, d the logistic function of the logits.

    Source: Ganin et al., JMLR 2016, equations 6 and 9.
    https://arxiv.org/abs/1505.07818

    Args:
        source: Features, shape (n_s, d), floating point.
        target: Features, shape (n_t, d), floating point.
        discriminator: From (n, d) to (n, 1) logits, positive for source.

    Returns:
        A scalar, float32 or better; 2 log 2 = 1.386 for a discriminator that does not know the domains.

    Examples:
        >>> undecided = nn.Linear(3, 1)
        >>> _ = nn.init.zeros_(undecided.weight), nn.init.zeros_(undecided.bias)
        >>> round(domain_classification(torch.ones(4, 3), torch.zeros(2, 3), undecided).item(), 3)
        1.386
    """
    return softplus(-discriminator(source)).mean() + softplus(discriminator(target)).mean()


@full_precision
def inverted_labels(target: Tensor, discriminator: nn.Module) -> Tensor:
    """Cross-entropy of target features with the label of the source.

    The gradient goes to the features and not to the parameters of the discriminator.

    Source: Tzeng et al., "Adversarial discriminative domain adaptation", CVPR 2017, equation 9.
    https://arxiv.org/abs/1702.05464

    Args:
        target: Features, shape (n_t, d), floating point.
        discriminator: From (n, d) to (n, 1) logits, positive for source.

    Returns:
        A scalar, float32 or better.

    Examples:
        >>> undecided = nn.Linear(3, 1)
        >>> _ = nn.init.zeros_(undecided.weight), nn.init.zeros_(undecided.bias)
        >>> round(inverted_labels(torch.ones(4, 3), undecided).item(), 3)
        0.693
    """
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return softplus(-functional_call(discriminator, fixed, (target,))).mean()
