import math

from torch import Tensor

from lightning_da.losses.precision import full_precision


def _deviations(x: Tensor) -> Tensor:
    """Centred rows over sqrt(n - 1), so that x^T x is the covariance; zero for a single sample."""
    return (x - x.mean(dim=0, keepdim=True)) / math.sqrt(max(len(x) - 1, 1))


def covariance(x: Tensor) -> Tensor:
    """Sample covariance with n - 1, zero for a single sample.

    Args:
        x: Shape (n, d), floating point.

    Returns:
        Shape (d, d), the dtype of `x`.

    Example:
        >>> import torch
        >>> covariance(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).tolist()
        [[2.0, 4.0], [4.0, 8.0]]
    """
    deviations = _deviations(x)
    return deviations.T @ deviations


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """The inner product of x^T x and y^T y, from the products of the rows."""
    return (x @ y.T).square().sum()


@full_precision
def coral(source: Tensor, target: Tensor) -> Tensor:
    """CORAL loss: ||C_s - C_t||_F^2 / (4 d^2), C the covariances of the two samples.

    Few samples of wide activations need O(n^2 d) operations, others O(n d^2). For few samples no covariance is formed:
    ||C_s - C_t||^2 = ||C_s||^2 + ||C_t||^2 - 2 <C_s, C_t>, and each term is the sum of the squares of an n x n Gram
    matrix. These terms nearly cancel if the covariances are nearly equal. For this reason they are float64.

    Source: Sun and Saenko, "Deep CORAL", ECCV workshops 2016, equations 1 to 3.

    Args:
        source: Activations, shape (n_s, d), floating point.
        target: Activations, shape (n_t, d), floating point.

    Returns:
        A scalar, float32 or better, never negative.

    Raises:
        ValueError: If the widths differ.

    Example:
        >>> import torch
        >>> source = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        >>> coral(source, 2 * source).item()
        56.25
    """
    width = source.shape[1]
    if width != target.shape[1]:
        raise ValueError(f"source and target activations differ in width: {width} and {target.shape[1]}")
    # A product in float64 takes twice the time; Apple's GPUs have none.
    if 2 * (len(source) + len(target)) < width and source.device.type != "mps":
        s, t = _deviations(source.double()), _deviations(target.double())
        squared = (_inner(s, s) + _inner(t, t) - 2 * _inner(s, t)).clamp(min=0).to(source.dtype)
    else:
        squared = (covariance(source) - covariance(target)).square().sum()
    return squared / (4 * width**2)
