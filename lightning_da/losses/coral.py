from torch import Tensor

from lightning_da.losses.precision import full_precision


def covariance(x: Tensor) -> Tensor:
    """Sample covariance with n - 1, zero for a single sample.

    Args:
        x: Shape (n, d).

    Returns:
        Shape (d, d).
    """
    centred = x - x.mean(dim=0, keepdim=True)
    return centred.T @ centred / max(len(x) - 1, 1)


@full_precision
def coral(source: Tensor, target: Tensor) -> Tensor:
    """CORAL loss: ||C_s - C_t||_F^2 / (4 d^2), C the covariances of the two samples.

    Source: Sun and Saenko, "Deep CORAL", ECCV workshops 2016, equations 1 to 3.

    Args:
        source: Activations, shape (n_s, d), floating point.
        target: Activations, shape (n_t, d), floating point.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: If the widths differ.
    """
    if source.shape[1] != target.shape[1]:
        raise ValueError(f"source and target activations differ in width: {source.shape[1]} and {target.shape[1]}")
    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1] ** 2)
