from torch import Tensor

from lightning_da.losses.precision import full_precision


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0, keepdim=True)


def _degrees(x: Tensor) -> int:
    """Degrees of freedom: n - 1, or 1 for a single sample, whose covariance is zero."""
    return max(len(x) - 1, 1)


def covariance(x: Tensor) -> Tensor:
    """Sample covariance with n - 1, zero for a single sample.

    Args:
        x: Shape (n, d), floating point.

    Returns:
        Shape (d, d), the dtype of `x`.

    Examples:
        >>> import torch
        >>> covariance(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).tolist()
        [[2.0, 4.0], [4.0, 8.0]]
    """
    centred = _centred(x)
    return centred.T @ centred / _degrees(x)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """The inner product of the covariances of two centred samples, from the products of their rows."""
    return (x @ y.T).square().sum() / (_degrees(x) * _degrees(y))


@full_precision
def coral(source: Tensor, target: Tensor) -> Tensor:
    """CORAL loss: `||C_s - C_t||_F^2 / (4 d^2)`, C the covariances of the two samples.

    Few samples of wide activations need O(n^2 d) operations, others O(n d^2). For few samples no covariance is formed:
    `||C_s - C_t||^2 = ||C_s||^2 + ||C_t||^2 - 2 <C_s, C_t>`, and each term is the sum of the squares of an n x n Gram
    matrix. These terms nearly cancel if the covariances are nearly equal. For this reason they are float64.

    Source: Sun and Saenko, "Deep CORAL", ECCV workshops 2016, equations 1 to 3.
    https://arxiv.org/abs/1607.01719

    Args:
        source: Activations, shape (n_s, d), floating point.
        target: Activations, shape (n_t, d), floating point.

    Returns:
        A scalar, float32 or better, never negative.

    Raises:
        ValueError: If the widths differ.

    Examples:
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
        s, t = _centred(source.double()), _centred(target.double())
        squared = (_inner(s, s) + _inner(t, t) - 2 * _inner(s, t)).clamp(min=0).to(source.dtype)
    else:
        squared = (covariance(source) - covariance(target)).square().sum()
    return squared / (4 * width**2)
