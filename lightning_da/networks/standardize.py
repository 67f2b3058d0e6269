"""Standardisation to zero mean and unit variance."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, or of each channel of images.

    Args:
        parts: Chunks of samples, each of shape (b, d) or (b, channels, height, width).

    Returns:
        Two float32 tensors of shape (1, d) or (1, channels, 1, 1). A constant feature has deviation 1.
    """
    number, mean, squares = 0, torch.zeros(1), torch.zeros(1)
    for part in parts:
        x = part.double()
        over = [0, *range(2, x.ndim)]
        size = x.numel() // x.shape[1]
        own = x.mean(over, keepdim=True)
        number += size
        change = own - mean
        # Chan, Golub and LeVeque 1979: combines the sums of squared deviations from the means of two chunks
        squares = squares + (x - own).square().sum(over, keepdim=True) + change.square() * (size * (1 - size / number))
        mean = mean + change * (size / number)
    std = (squares / number).sqrt()
    varies = std > torch.finfo(torch.float32).eps * mean.abs()  # smaller deviations are rounding errors
    return mean.float(), torch.where(varies, std, 1.0).float()


class Standardize(nn.Module):
    """Scales each feature, or each channel of images, to zero mean and unit variance; constant features become 0.

    Args:
        input_shape: Shape of one sample, (d,) or (channels, height, width).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        shape = (1, input_shape[0], *(1 for _ in input_shape[1:]))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, parts: Iterable[Tensor]) -> None:
        """Computes mean and standard deviation from chunks of samples, each of shape (b, *input_shape)."""
        mean, std = moments(parts)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        """Standardises samples (B, *input_shape)."""
        return (x - self.mean) / self.std
