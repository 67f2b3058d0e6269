"""The losses of domain separation networks: reconstruction up to a constant, and features that are orthogonal."""

from torch import Tensor
from torch.nn.functional import normalize

from lightning_da.losses.precision import full_precision

_SHORTEST = 1e-6
"""Shorter vectors are divided by this length: the direction of rounding errors is not taken for one."""


@full_precision
def scale_invariant_mse(found: Tensor, expected: Tensor) -> Tensor:
    """Mean squared error of each sample without the error of its mean; the mean over samples.

    It is `||e||^2 / k - (e . 1)^2 / k^2`, the variance of the errors e over the k values of a sample: a constant added
    to all values of a sample costs nothing, errors of opposite signs cost more.

    Source: Bousmalis et al., "Domain separation networks", NeurIPS 2016, equation 4.
    https://arxiv.org/abs/1608.06019

    Args:
        found: Reconstructions, shape (n, k), floating point.
        expected: Samples, shape (n, k), floating point.

    Returns:
        A scalar, float32 or better, never negative.

    Examples:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> scale_invariant_mse(x + 5, x).item()
        0.0
        >>> scale_invariant_mse(x + torch.tensor([1.0, -1.0]), x).item()
        1.0
    """
    return (found - expected).var(dim=1, correction=0).mean()


@full_precision
def difference(shared: Tensor, private: Tensor) -> Tensor:
    """How far the shared and the private features of the same samples are from orthogonal; 0 if they are.

    It is `||H_c^T H_p||_F^2 / (d_c d_p)`. The rows of H_c and H_p are the features of a sample, without the mean over
    samples and scaled to length 1.

    Source: Bousmalis et al., "Domain separation networks", NeurIPS 2016, equation 5, in the form of the authors' code:
    the paper has neither the mean nor the length nor the division by the number of entries.
    https://arxiv.org/abs/1608.06019

    Args:
        shared: Shape (n, d_c), floating point.
        private: Shape (n, d_p), floating point.

    Returns:
        A scalar, float32 or better, never negative.

    Examples:
        >>> import torch
        >>> shared = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> difference(shared, torch.tensor([[3.0], [-3.0]])).item()
        2.0
        >>> difference(shared, torch.tensor([[1.0], [1.0]])).item()
        0.0
    """
    centred = [normalize(x - x.mean(dim=0), dim=1, eps=_SHORTEST) for x in (shared, private)]
    return (centred[0].T @ centred[1]).square().mean()
