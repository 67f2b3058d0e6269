import torch
from torch import Tensor

from lightning_da.losses.precision import full_precision


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm, whose gradient at 0 is 0."""
    squared = x.square().sum()
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


@full_precision
def central_moments(source: Tensor, target: Tensor, order: int = 5, width: float = 1.0) -> Tensor:
    """Central moment discrepancy: the distances of the means and of the central moments of each feature.

    `||E[X] - E[Y]|| / (b - a) + sum_(k=2..K) ||c_k(X) - c_k(Y)|| / (b - a)^k`, c_k the k-th central moment of each
    feature, for features in the interval [a, b].

    Source: Zellinger et al., "Central moment discrepancy (CMD) for domain-invariant representation learning", ICLR
    2017, definition 2.
    https://arxiv.org/abs/1702.08811

    Args:
        source: Activations, shape (n_s, d), floating point.
        target: Activations, shape (n_t, d), floating point.
        order: K, the highest moment.
        width: b - a, the width of the interval that the activations are in.

    Returns:
        A scalar, float32 or better, never negative.

    Examples:
        >>> central_moments(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [0.5]])).item()
        0.3125
    """
    means = source.mean(dim=0), target.mean(dim=0)
    terms = [_norm(means[0] - means[1]) / width]
    for k in range(2, order + 1):
        moments = [(x - mean).pow(k).mean(dim=0) for x, mean in zip((source, target), means, strict=True)]
        terms.append(_norm(moments[0] - moments[1]) / width**k)
    return torch.stack(terms).sum()
