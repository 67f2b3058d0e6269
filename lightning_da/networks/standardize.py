"""Standardisation to zero mean and unit variance, with the training samples of both domains."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = ("source", "target")
"""The rows of mean and deviation that are kept for each domain."""
CLIP = 5.0
"""Largest distance from the mean, in deviations. Of a normal feature one value in two million is farther away; a rare
feature, for example a word in few texts, would reach the square root of the number of samples."""
FAR = 5.0
"""A feature of the target is far from the source if its mean differs by so many deviations, those of both domains
together, or if its deviation is so many times that of the source."""


class Moments:
    """Mean and variance of each feature, or of each channel of images, from chunks of samples.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf

    Attributes:
        number: The number of values.
        mean: Shape (1, d) or (1, channels, 1, 1), float64.
        variance: The same shape; 0 for a constant feature.
    """

    def __init__(self) -> None:
        self.number, self.mean, self._squares = 0, torch.zeros(1).double(), torch.zeros(1).double()

    def add(self, x: Tensor) -> None:
        """Adds a chunk of samples, shape (b, d) or (b, channels, height, width)."""
        x = x.double()
        over = [0, *range(2, x.ndim)]
        size = x.numel() // x.shape[1]
        own = x.mean(over, keepdim=True)
        self.number += size
        change = own - self.mean
        grown = change.square() * (size * (1 - size / self.number))
        self._squares = self._squares + (x - own).square().sum(over, keepdim=True) + grown
        self.mean = self.mean + change * (size / self.number)

    @property
    def variance(self) -> Tensor:
        variance = self._squares / self.number
        rounding = (torch.finfo(torch.float32).eps * self.mean).square()
        return torch.where(variance > rounding, variance, 0.0)


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, or of each channel of images.

    Args:
        parts: Chunks of samples, each of shape (b, d) or (b, channels, height, width).

    Returns:
        Two float32 tensors of shape (1, d) or (1, channels, 1, 1). A constant feature has deviation 1.
    """
    found = Moments()
    for part in parts:
        found.add(part)
    return found.mean.float(), _deviation(found.variance)


def _deviation(variance: Tensor) -> Tensor:
    return torch.where(variance > 0, variance.sqrt(), 1.0).float()


class _Counts:
    """Whether samples are counts: integers, most of them 0, none negative, some above 1, none with half of the sum."""

    def __init__(self) -> None:
        self._whole, self._largest, self._zeros, self._values = True, 0.0, 0, 0
        self._sums = torch.zeros(1).double()

    def add(self, x: Tensor) -> None:
        self._whole &= bool((x >= 0).all() and (x == x.floor()).all())
        self._largest = max(self._largest, float(x.max()))
        self._zeros += int((x == 0).sum())
        self._values += x.numel()
        self._sums = self._sums + x.double().sum(dim=0)

    def __bool__(self) -> bool:
        shared = bool(self._sums.max() < 0.5 * self._sums.sum())
        return self._whole and self._largest > 1 and self._zeros > 0.5 * self._values and shared


def root_shares(counts: Tensor) -> Tensor:
    """Square roots of the shares of counts: vectors of length 1, whatever the sum of the counts.

    A long and a short text with the same words get the same vector, and frequent words do not drown the others.

    Source: Perronnin et al., "Large-scale image categorization with explicit data embedding", CVPR 2010, section 3.2
    (Hellinger's kernel); Arandjelovic and Zisserman, "Three things everyone should know", CVPR 2012, section 3.
    https://doi.org/10.1109/CVPR.2010.5539914, https://doi.org/10.1109/CVPR.2012.6248018

    Args:
        counts: Shape (n, d), not negative.
    """
    return (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()


class Standardize(nn.Module):
    """Scales each feature, or each channel of images, to zero mean and unit variance, between -5 and 5 deviations.

    Mean and variance are those of both domains with equal weight, or of each domain. The mean and the variance of the
    source alone let features explode that are rare there and frequent in the target. Constant features become 0.
    Vectors of counts (word counts, visual words) are first replaced by `root_shares`.

    Args:
        input_shape: Shape of one sample, (d,) or (channels, height, width).
        per_domain: Whether each domain is scaled by its own mean and variance. It removes a shift of each feature, but
            also a difference that comes from other proportions of the classes.
    """

    mean: Tensor
    std: Tensor
    counts: Tensor

    def __init__(self, input_shape: tuple[int, ...], per_domain: bool = False) -> None:
        super().__init__()
        self.per_domain = per_domain
        shape = (2 if per_domain else 1, input_shape[0], *(1 for _ in input_shape[1:]))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("counts", torch.tensor(False))
        self._has_counts = False
        self._sizes: Mapping[str, int] = {}
        self.set_domain("target")

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        """Sets the domain of the next samples; for a batch of both, the number of samples of each, in order."""
        self._sizes = {domain: -1} if isinstance(domain, str) else domain

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> int:
        """Takes mean and variance from the training samples of both domains.

        Args:
            samples: From `source` or `target` to chunks of samples, each of shape (b, *input_shape). Vectors are read
                twice.

        Returns:
            The number of features of the target that are far from the source (see `FAR`).
        """
        if self.mean.ndim == 2:
            counts = _Counts()
            for domain in _ROWS:
                for part in samples(domain):
                    counts.add(part)
            self._set_counts(bool(counts))
        found = [Moments() for _ in _ROWS]
        for domain, own in zip(_ROWS, found, strict=True):
            for part in samples(domain):
                own.add(root_shares(part) if self._has_counts else part)
        mean, variance = (torch.cat([getattr(own, name) for own in found]) for name in ("mean", "variance"))
        shift = (mean[1:] - mean[:1]).square()
        moved = shift > FAR**2 * variance.mean(dim=0) + (torch.finfo(torch.float32).eps * mean[:1]).square()
        wider = (variance[1:] > FAR**2 * variance[:1]) & (variance[:1] > 0)
        if not self.per_domain:
            mean, variance = mean.mean(dim=0, keepdim=True), variance.mean(dim=0, keepdim=True) + shift / 4
        self.mean.copy_(mean)
        self.std.copy_(_deviation(variance))
        return int((moved | wider).sum())

    def forward(self, x: Tensor) -> Tensor:
        """Standardises samples (B, *input_shape)."""
        if self._has_counts:
            x = root_shares(x)
        if not self.per_domain:
            return self._scaled(x, 0)
        if len(self._sizes) == 1:  # without the number of samples, which an exported program would keep
            return self._scaled(x, _ROWS.index(next(iter(self._sizes))))
        parts = zip(self._sizes, x.split(list(self._sizes.values())), strict=True)
        return torch.cat([self._scaled(part, _ROWS.index(domain)) for domain, part in parts])

    def _set_counts(self, counts: bool) -> None:
        self.counts.fill_(counts)
        self._has_counts = counts  # a value on the CPU: no wait for a GPU in each step

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}mean" in state_dict:  # a checkpoint from before counts were known has no flag
            state_dict.setdefault(f"{prefix}counts", torch.tensor(False))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._has_counts = bool(self.counts)

    def _scaled(self, x: Tensor, row: int) -> Tensor:
        scaled: Tensor = (x - self.mean[row]) / self.std[row]
        return scaled.clamp(-CLIP, CLIP)

    def extra_repr(self) -> str:
        origin = "each domain" if self.per_domain else "all training samples"
        shares = "square roots of the shares of counts, " if self._has_counts else ""
        return f"{shares}mean and deviation of {origin}, clipped at {CLIP:.0f} deviations"
