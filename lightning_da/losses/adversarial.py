from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_da.losses.games import with_fixed_weights
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


def _logits(discriminator: nn.Module, x: Tensor, fixed: bool = False) -> Tensor:
    """The logits of a discriminator with the dtype of `x`; its weights may have half precision (`bf16-true`)."""
    read = x.to(next(discriminator.parameters(), x).dtype)
    return (with_fixed_weights(discriminator, read) if fixed else discriminator(read)).to(x.dtype)


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of losses (n, 1), with weights (n,) if there are any."""
    return losses.mean() if weights is None else (weights / weights.sum()) @ losses[:, 0]


@full_precision
def domain_classification(
    source: Tensor,
    target: Tensor,
    discriminator: nn.Module,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a domain discriminator, the mean over source samples plus the mean over target samples.

    It is -log d(f) on source and -log(1 - d(f)) on target, d the logistic function of the logits.

    Source: Ganin et al., JMLR 2016, equations 6 and 9.
    https://arxiv.org/abs/1505.07818

    Args:
        source: Features, shape (n_s, d), floating point.
        target: Features, shape (n_t, d), floating point.
        discriminator: From (n, d) to (n, 1) logits, positive for source.
        source_weights: Weights of the source samples in their mean, shape (n_s,), positive; None for equal ones.
        target_weights: Weights of the target samples in their mean, shape (n_t,), positive; None for equal ones.

    Returns:
        A scalar, float32 or better; 2 log 2 = 1.386 for a discriminator that does not know the domains.

    Examples:
        >>> undecided = nn.Linear(3, 1)
        >>> _ = nn.init.zeros_(undecided.weight), nn.init.zeros_(undecided.bias)
        >>> round(domain_classification(torch.ones(4, 3), torch.zeros(2, 3), undecided).item(), 3)
        1.386
    """
    losses = softplus(-_logits(discriminator, source)), softplus(_logits(discriminator, target))
    return _mean(losses[0], source_weights) + _mean(losses[1], target_weights)


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
    return softplus(-_logits(discriminator, target, fixed=True)).mean()


@full_precision
def domain_confusion(source: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
    """Cross-entropy of a discriminator's domains with equal probabilities of both, the domain confusion loss.

    It is `-(log d(f) + log(1 - d(f))) / 2`, the mean over source samples plus the mean over target samples. The
    gradient goes to the features and not to the parameters of the discriminator.

    Source: Tzeng et al., "Simultaneous deep transfer across domains and tasks", ICCV 2015, equation 5.
    https://arxiv.org/abs/1510.02192

    Args:
        source: Features, shape (n_s, d), floating point.
        target: Features, shape (n_t, d), floating point.
        discriminator: From (n, d) to (n, 1) logits, positive for source.

    Returns:
        A scalar, float32 or better, at least 2 log 2 = 1.386.

    Examples:
        >>> undecided = nn.Linear(3, 1)
        >>> _ = nn.init.zeros_(undecided.weight), nn.init.zeros_(undecided.bias)
        >>> round(domain_confusion(torch.ones(4, 3), torch.zeros(2, 3), undecided).item(), 3)
        1.386
    """
    logits = [_logits(discriminator, x, fixed=True) for x in (source, target)]
    return torch.stack([(softplus(z) + softplus(-z)).mean() / 2 for z in logits]).sum()


@full_precision
def unknown_boundary(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Cross-entropy of the probability of the last class with a constant, the mean over samples.

    It is -t log p - (1 - t) log(1 - p), and smallest where the last class has the probability t.

    Source: Saito et al., "Open set domain adaptation by backpropagation", ECCV 2018, equation 3.
    https://arxiv.org/abs/1804.10427

    Args:
        logits: Of target samples, shape (n, classes), floating point, at least two classes.
        threshold: The constant t, in (0, 1).

    Returns:
        A scalar, float32 or better; log 2 = 0.693 where the last class has the probability t = 0.5.

    Examples:
        >>> round(unknown_boundary(torch.tensor([[0.0, 0.0, 0.6931]])).item(), 3)
        0.693
    """
    odds = logits[:, -1] - logits[:, :-1].logsumexp(dim=1)
    return (threshold * softplus(-odds) + (1 - threshold) * softplus(odds)).mean()
